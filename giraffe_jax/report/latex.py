"""Tables as LaTeX for a paper: booktabs, small intervals beside values, bold where the best beats the runner-up."""

from __future__ import annotations

from collections.abc import Sequence

from giraffe_jax.report.formats import below
from giraffe_jax.report.tables import EFFECTIVE, Table, effective_text

HEAD = "% For \\input; needs \\usepackage{booktabs} and, for names that are not ASCII, T1 fonts and UTF-8.\n"
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # After the end of a row, LaTeX would read these as arguments of \\.
        "[": "{[}",
        "*": "{*}",
        # Symbols in numbers, headings and notes.
        "–": "--",
        "×": r"$\times$",
        "⁹": "$^9$",
        "·": r"$\cdot$",
        "−": "$-$",
        "†": r"$^\dagger$",
    }
    | {c: "\\" + c for c in "&%_#${}"}
)


def escape(text: str) -> str:
    """Returns the text with LaTeX's special characters escaped, on one line."""
    return " ".join(text.split()).translate(ESCAPES)


def table(table: Table) -> str:
    """Returns one table: variants down, lengths across, and the effective length if the table has one."""
    heads = ["", *(_heading(table, length) for length in table.lengths)] + [EFFECTIVE] * bool(table.effective)
    lines = [" & ".join(heads) + r" \\", r"\midrule"]
    for variant in table.variants:
        cells = [escape(variant), *(_cell(table, variant, length) for length in table.lengths)]
        cells += [escape(effective_text(table, variant))] if table.effective else []
        lines.append(" & ".join(cells) + r" \\")
    return environment(" ".join([f"{table.title}.", *below(table)]), "l" + "r" * (len(heads) - 1), lines)


def environment(caption: str, columns: str, lines: Sequence[str]) -> str:
    """Returns a table environment with these rows; `caption` is plain text and is escaped here."""
    begin = ["\\begin{table}", "\\centering", f"\\caption{{{escape(caption)}}}", f"\\begin{{tabular}}{{{columns}}}"]
    return "\n".join([*begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def all_latex(tables: Sequence[Table], rendered: Sequence[str] = ()) -> str:
    """Returns the text of tables.tex: every table, then `rendered` tables that are LaTeX already."""
    return HEAD + "".join("\n" + text for text in [*map(table, tables), *rendered])


def _heading(table: Table, length: int) -> str:
    notes = ", ".join(table.notes(length))
    return escape(table.heading(length)) + (rf" {{\scriptsize {escape(notes)}}}" if notes else "")


def _cell(table: Table, variant: str, length: int) -> str:
    if (variant, length) not in table.cells:
        return "--"
    value = escape(table.text(variant, length))
    value = rf"\textbf{{{value}}}" if variant == table.best.get(length) else value
    aside = escape(table.aside(variant, length))
    return value + (rf" {{\scriptsize {aside}}}" if aside else "")
