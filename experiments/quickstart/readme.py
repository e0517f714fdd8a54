"""Puts the quick start's figures where they are shown: its tables into README.md beside this file, plots into docs.

    giraffe run experiments/quickstart
    python experiments/quickstart/readme.py runs/quickstart

Copies results.csv and two plots of the run to docs/quickstart/ and writes the page's tables anew from them, so that
what is shown is what the command made (tests/experiments/test_quickstart_readme.py holds them together).
"""

import argparse
import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

from giraffe_jax import records
from giraffe_jax.report.tables import number

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "quickstart"
COPIED = {
    "results.csv": "results.csv",
    "plots/perplexity-length.svg": "perplexity.svg",
    "plots/lines-teacher-length.svg": "lines.svg",
}
BEGIN, END = "<!-- quickstart's tables: begin -->\n", "<!-- quickstart's tables: end -->\n"
# Task, metric, what it is called, whether it is a share, and the lengths shown (None: all).
SHOWN = (
    (("perplexity", "perplexity", "perplexity", False, None),),
    (("lines", "teacher", "lines", True, None), ("passkey", "teacher", "passkey", True, (1024,))),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Copy the run's files and rewrite the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of `giraffe run experiments/quickstart`, finished")
    args = parser.parse_args(argv)
    missing = [name for name in COPIED if not (args.workdir / name).is_file()]
    if missing:
        parser.error(f"{args.workdir}: {', '.join(missing)} not there; run giraffe run experiments/quickstart first")
    for source, target in COPIED.items():
        DOCS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.workdir / source, DOCS / target)
    readme = Path(__file__).with_name("README.md")
    records.write_atomically(readme, with_tables(readme.read_text(encoding="utf-8"), tables()))


def tables() -> str:
    """The README's tables, as Markdown, of docs/quickstart/results.csv."""
    with open(DOCS / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return "\n".join(table(rows, parts) for parts in SHOWN)


def with_tables(readme: str, tables: str) -> str:
    """The README with `tables` between its two marks."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + tables + "\n" + END + rest.split(END)[1]


def table(rows: Sequence[dict[str, str]], parts: Sequence[tuple]) -> str:
    """One table: variants down, lengths across; a cell is the value and its 95% interval."""
    cells = {(row["variant"], row["task"], row["metric"], int(row["length"])): row for row in rows}
    columns, heads = [], []
    for task, metric, name, share, only in parts:
        lengths = sorted({length for _, t, m, length in cells if (t, m) == (task, metric)})
        for length in lengths if only is None else only:
            heads.append(f"{length:,}" if heads and only is None else f"{name} at {length:,}")
            columns.append((task, metric, length, share))
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [cell(cells[variant, task, metric, length], share) for task, metric, length, share in columns]
        lines.append(f"| {variant} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, str], share: bool) -> str:
    """The value and its 95% interval."""
    value, low, high = (number(float(row[name]), share) for name in ("value", "low", "high"))
    return f"{value} ({low.removesuffix('%')}–{high})"


if __name__ == "__main__":
    main()
