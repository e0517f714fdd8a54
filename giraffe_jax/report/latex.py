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


def table(made: Table) -> str:
    """Returns one table: variants down, lengths across, and the effective length if the table has one."""
    heads = ["", *(_heading(made, length) for length in made.lengths)] + [EFFECTIVE] * bool(made.effective)
    lines = [" & ".join(heads) + r" \\", r"\midrule"]
    for variant in made.variants:
        cells = [escape(variant), *(_cell(made, variant, length) for length in made.lengths)]
        cells += [escape(effective_text(made, variant))] if made.effective else []
        lines.append(" & ".join(cells) + r" \\")
    return environment(" ".join([f"{made.title}.", *below(made)]), "l" + "r" * (len(heads) - 1), lines)


def environment(caption: str, columns: str, lines: Sequence[str]) -> str:
    """Returns a table environment with these rows; `caption` is plain text and is escaped here."""
    begin = ["\\begin{table}", "\\centering", f"\\caption{{{escape(caption)}}}", f"\\begin{{tabular}}{{{columns}}}"]
    return "\n".join([*begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def all_latex(made: Sequence[Table], more: Sequence[str] = ()) -> str:
    """Returns the text of tables.tex: every table, then `more` tables that are LaTeX already."""
    return HEAD + "".join("\n" + text for text in [*map(table, made), *more])


def _heading(made: Table, length: int) -> str:
    notes = ", ".join(made.notes(length))
    return escape(made.heading(length)) + (rf" {{\scriptsize {escape(notes)}}}" if notes else "")


def _cell(made: Table, variant: str, length: int) -> str:
    if (variant, length) not in made.cells:
        return "--"
    value = escape(made.text(variant, length))
    value = rf"\textbf{{{value}}}" if variant == made.best.get(length) else value
    aside = escape(made.aside(variant, length))
    return value + (rf" {{\scriptsize {aside}}}" if aside else "")
