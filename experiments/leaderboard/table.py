"""The leaderboard's tables, best first: methods as they are, then after training.

    python experiments/leaderboard/table.py runs/leaderboard

Prints Markdown. Methods are in the order of the first task beyond the trained length: of the mean share of right
answers, or of perplexity, over the lengths there. The other tasks follow as columns.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from giraffe_jax import report
from giraffe_jax.report.tables import EFFECTIVE, TOO_FEW, Table, effective_note, effective_text, number, tables


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of giraffe run experiments/leaderboard")
    print(leaderboard(parser.parse_args(argv).workdir))


def leaderboard(workdir: Path) -> str:
    results = report.read([workdir])
    if results.original_len is None:  # else every length would count as beyond
        raise SystemExit(
            f"{workdir}: nothing there says what length the model was trained on; `giraffe run` writes experiment.json "
            'with it, and beside rows alone put one like {"original_len": 256}.'
        )
    made = tables(results, report.score_all(results))
    firsts = [next(table for table in made if table.task == task) for task in results.tasks]
    parts = []
    for heading, trained in (("As it is", False), ("After training", True)):
        variants = [v for v in results.variants if results.trained[v] == trained]
        if variants:
            parts.append(f"### {heading}\n\n{markdown(firsts, variants)}")
    notes = [effective_note(table) for table in firsts if has_effective(table)]
    return "\n".join([*parts, *notes])


def markdown(parts: Sequence[Table], variants: Sequence[str]) -> str:
    """Returns one table: `variants` down, best first; across, of each task, its lengths, where several are beyond the
    trained length their mean, and where any variant can have one the effective length."""
    heads = [""]
    for table in parts:
        heads += [f"{table.title}<br>{table.lengths[0]:,}", *(f"{length:,}" for length in table.lengths[1:])]
        heads += ["beyond"] * has_mean(table) + [EFFECTIVE] * has_effective(table)
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for variant in (variant for variant in parts[0].furthest() if variant in variants):
        row = [variant.removesuffix(" + training")]
        for table in parts:
            cells = [table.cells.get((variant, length)) for length in table.lengths]
            row += ["" if cell is None else number(cell.estimate.value, table.metric.share) for cell in cells]
            if has_mean(table):
                mean = table.far(variant)
                row.append("" if math.isnan(mean) else number(mean, table.metric.share))
            if has_effective(table):
                row.append(effective_text(table, variant) if variant in table.variants else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def has_mean(table: Table) -> bool:
    """Whether several lengths are beyond the trained one."""
    return sum(length > (table.original_len or 0) for length in table.lengths) > 1


def has_effective(table: Table) -> bool:
    """Whether there are enough questions for an effective length of any variant."""
    return any(effective_text(table, variant) != TOO_FEW for variant in table.effective)


if __name__ == "__main__":
    main()
