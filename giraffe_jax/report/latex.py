"""Tables as LaTeX for a paper: booktabs, intervals small beside values, in bold what is told from the runner-up."""

from __future__ import annotations

from collections.abc import Sequence

from giraffe_jax.report.tables import EFFECTIVE, Table, effective_note, effective_text, interval, number

HEAD = "% For \\input; needs \\usepackage{booktabs} and, for names that are not ASCII, T1 fonts and UTF-8.\n"
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # After the end of a row these would be read as its arguments.
        "[": "{[}",
        "*": "{*}",
        # What numbers, headings and notes are written with.
        "–": "--",
        "×": r"$\times$",
        "⁹": "$^9$",
        "·": r"$\cdot$",
    }
    | {c: "\\" + c for c in "&%_#${}"}
)


def escape(text: str) -> str:
    """The text as LaTeX shows it: special characters escaped, on one line."""
    return " ".join(text.split()).translate(ESCAPES)


def table(made: Table) -> str:
    """One table: variants down, lengths across, and the effective length where there is one."""
    heads = ["", *(_heading(made, length) for length in made.lengths)] + [EFFECTIVE] * bool(made.effective)
    lines = [" & ".join(heads) + r" \\", r"\midrule"]
    for variant in made.variants:
        cells = [escape(variant), *(_cell(made, variant, length) for length in made.lengths)]
        cells += [escape(effective_text(made, variant))] if made.effective else []
        lines.append(" & ".join(cells) + r" \\")
    note = effective_note(made)
    caption = escape(f"{made.title}." + (f" {note}" if note else ""))
    begin = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{caption}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
    ]
    return "\n".join([*begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def all_latex(made: Sequence[Table]) -> str:
    """tables.tex: every table."""
    return HEAD + "".join("\n" + table(one) for one in made)


def _heading(made: Table, length: int) -> str:
    notes = ", ".join(made.notes(length))
    return escape(made.heading(length)) + (rf" {{\scriptsize {escape(notes)}}}" if notes else "")


def _cell(made: Table, variant: str, length: int) -> str:
    score = made.cells.get((variant, length))
    if score is None:
        return "--"
    value = escape(number(score.estimate.value, made.metric.share))
    value = rf"\textbf{{{value}}}" if variant == made.best.get(length) else value
    small = [escape(interval(score.estimate, made.metric.share))]
    small += [f"n={score.estimate.n}"] if made.n(length) is None else []
    span = ", ".join(part for part in small if part)
    return value + (rf" {{\scriptsize {span}}}" if span else "")
