"""The leaderboard's tables, best first: methods as they are, then after training, then after training on text alone.

    python experiments/leaderboard/table.py runs/leaderboard                                      # of one base
    python experiments/leaderboard/table.py runs/leaderboard runs/leaderboard_4 runs/leaderboard_5   # over several
    python experiments/leaderboard/table.py runs/leaderboard --leading=20             # the names that lead, one a line

Prints Markdown. Methods are in the order of the first task beyond the trained length: of the mean share of right
answers, or of perplexity, over the lengths there and over bases, of which each workdir has one. Rank and mean stand
with their 95% intervals; equal scores share a rank. The other tasks follow as columns.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from giraffe_jax import report
from giraffe_jax.evals import crossed
from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import (
    EFFECTIVE,
    TOO_FEW,
    Table,
    effective_note,
    effective_text,
    interval,
    number,
    tables,
)

SECTIONS = {"": "As it is", " + training": "After training", " + training on text": "After training on text alone"}


class Base(NamedTuple):
    """What one workdir holds: a base's rows, and the first table of each task."""

    name: str
    results: Results
    tables: dict[str, Table]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", type=Path, nargs="+", help="of giraffe run experiments/leaderboard, one of a base")
    parser.add_argument(
        "--leading", type=int, metavar="N", help="the N methods that lead, in turn as it is and trained"
    )
    args = parser.parse_args(argv)
    bases = read(args.workdirs)
    print("\n".join(leading(bases, args.leading)) if args.leading else leaderboard(bases))


def read(workdirs: Sequence[Path]) -> list[Base]:
    """Returns each workdir's base. SystemExit where they are not of different bases with the same questions."""
    found: list[Base] = []
    asked: dict[tuple[object, ...], object] = {}  # example -> the answer that it expects
    for workdir in workdirs:
        results = report.read([workdir])
        if results.original_len is None:  # else every length would count as beyond
            raise SystemExit(
                f"{workdir}: nothing there says what length the model was trained on; `giraffe run` writes "
                'experiment.json with it, and beside rows alone put one like {"original_len": 256}.'
            )
        if found and results.original_len != found[0].results.original_len:
            raise SystemExit(
                f"{workdir}: its base was trained on {results.original_len:,} tokens, that of {workdirs[0]} on "
                f"{found[0].results.original_len:,}; what is beyond must be the same for all."
            )
        name = results.manifest.get("config", {}).get("source", str(workdir))
        if name in [base.name for base in found]:
            raise SystemExit(f"{workdir}: its base, {name}, is that of another workdir too; give one of each base.")
        for row in results.rows:
            example = tuple(row.get(key) for key in ("task", "length", "seed", "example", "window"))
            if asked.setdefault(example, row.get("expected")) != row.get("expected"):
                raise SystemExit(
                    f"{workdir}: other questions than in {workdirs[0]}: {row['task']} {row['example']} at "
                    f"{row['length']:,} tokens expects {row.get('expected')!r}, there {asked[example]!r}. Measure all "
                    "bases with the same tokenizer, tasks and version of giraffe-jax."
                )
        made = tables(results, report.score_all(results))
        firsts = {task: next(table for table in made if table.task == task) for task in results.tasks}
        found.append(Base(name, results, firsts))
    return found


def leaderboard(bases: Sequence[Base]) -> str:
    parts = []
    if len(bases) > 1:
        parts.append(f"{len(bases)} bases, each number the mean over them: {', '.join(base.name for base in bases)}.\n")
    for suffix, heading in SECTIONS.items():
        variants = of_section(bases, suffix)
        if variants:
            parts.append(f"### {heading}\n\n{markdown(bases, variants, suffix)}")
    notes = [effective_note(table) for table in bases[0].tables.values() if has_effective(bases, table)]
    return "\n".join([*parts, intervals_note(bases), *notes])


def leading(bases: Sequence[Base], n: int) -> list[str]:
    """Returns the n methods that come first when both tables, as it is and after training, are read in turn."""
    orders = []
    for suffix in list(SECTIONS)[:2]:
        order = ordered(bases, of_section(bases, suffix))
        orders.append([variant.removesuffix(suffix) for variant in order])
    both = itertools.chain.from_iterable(itertools.zip_longest(*orders))
    return list(dict.fromkeys(name for name in both if name is not None))[:n]


def of_section(bases: Sequence[Base], suffix: str) -> list[str]:
    """The variants of any base that were read as they are, or were trained as the suffix says."""
    names = dict.fromkeys(v for base in bases for v in base.results.variants)
    found = []
    for name in names:
        trained = any(base.results.trained.get(name) for base in bases)
        last = list(SECTIONS)[2]
        if suffix == ("" if not trained else last if name.endswith(last) else " + training"):
            found.append(name)
    return found


def markdown(bases: Sequence[Base], variants: Sequence[str], suffix: str) -> str:
    """Returns one table: `variants` down, best first; across, of each task, its lengths, where several are beyond the
    trained length their mean, and where any variant can have one the effective length."""
    heads = ["", "rank"]
    parts = list(bases[0].tables.values())
    for table in parts:
        heads += [f"{table.title}<br>{table.lengths[0]:,}", *(f"{length:,}" for length in table.lengths[1:])]
        heads += ["beyond"] * has_mean(table) + [EFFECTIVE] * has_effective(bases, table)
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    scores = {table.task: ranked(bases, table, variants) for table in parts}
    for variant in ordered(bases, variants):
        there = sum(variant in base.results.variants for base in bases)
        name = variant.removesuffix(suffix) + f" ({there} of {len(bases)} bases)" * (there < len(bases))
        row = [name, rank_text(scores[parts[0].task], variant)]
        for table in parts:
            found = scores[table.task].get(variant)
            beside = "" if found is None else interval(shown(table, found.score), table.metric.share)
            beside = f" ({beside})" * bool(beside)
            cells = [mean_text(bases, table, variant, [n]) for n in table.lengths]
            if has_mean(table):
                cells.append(mean_text(bases, table, variant, beyond(table)) + beside)
            elif len(beyond(table)) == 1:
                cells[table.lengths.index(beyond(table)[0])] += beside
            if has_effective(bases, table):
                cells.append(effective_text(table, variant) if variant in table.variants else "")
            row += cells
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def ordered(bases: Sequence[Base], variants: Sequence[str]) -> list[str]:
    """The variants by their ranks; then by their scores those that are not on all bases; last what is not finished."""
    first = next(iter(bases[0].tables.values()))
    ranks = {name: found.rank.value for name, found in ranked(bases, first, variants).items()}
    sign = 1 if first.metric.better == "low" else -1

    def place(variant: str) -> tuple[int, float]:
        if variant in ranks:
            return 0, ranks[variant]
        score = mean_of(bases, first, variant, beyond(first))
        return (1, sign * score) if math.isfinite(score) else (2, 0.0)

    return sorted(variants, key=place)


def ranked(bases: Sequence[Base], table: Table, variants: Sequence[str]) -> dict[str, crossed.Ranked]:
    """Returns score and rank beyond the trained length of those variants that are finished, and finite, on all bases.

    Of perplexity the score is the mean loss, in nats.
    """
    found = {name: [values(base, table, name) for base in bases] for name in variants}
    whole = {
        name: [value for value, _ in pairs if value is not None and np.isfinite(value).all()]
        for name, pairs in found.items()
    }
    whole = {name: arrays for name, arrays in whole.items() if len(arrays) == len(bases)}
    if not whole:
        return {}
    weights = found[next(iter(whole))][0][1]
    try:
        return crossed.ranked(whole, higher=table.metric.better != "low", weights=weights)
    except ValueError as error:  # more questions or seeds in one than in another
        raise SystemExit(f"{table.task}, of {', '.join(base.name for base in bases)}: {error}") from None


def values(base: Base, table: Table, variant: str) -> tuple[np.ndarray | None, np.ndarray]:
    """A variant's scores beyond the trained length [seeds, lengths, questions], and their weights [lengths, questions].

    A document is one question, of as much weight as it has tokens. None where a length is not there, or a seed's.
    """
    loss = table.metric.kind == "perplexity"
    sums: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in base.results.of(table.task, variant):
        if row["length"] not in beyond(table) or (not loss and row["metrics"].get(table.metric.name) is None):
            continue
        value, weight = row["metrics"]["nll" if loss else table.metric.name], row["metrics"]["tokens"] if loss else 1.0
        unit = str(row.get("document", f"{row['example']:06d}"))
        of_unit = sums.setdefault((row.get("seed", 0), row["length"]), {}).setdefault(unit, [0.0, 0.0])
        of_unit[0] += (math.nan if value is None else value) * weight
        of_unit[1] += weight
    seeds = sorted({seed for seed, _ in sums})
    cells = [[sums.get((seed, length)) for length in beyond(table)] for seed in seeds]
    units = {tuple(sorted(cell)) for own in cells for cell in own if cell is not None}
    if not cells or any(cell is None for own in cells for cell in own) or len(units) != 1:
        return None, np.ones((1, 1))
    whole = np.array([[[cell[unit] for unit in sorted(cell)] for cell in own if cell is not None] for own in cells])
    return whole[..., 0] / whole[..., 1], whole[0, ..., 1]


def beyond(table: Table) -> list[int]:
    """The lengths beyond the trained one; all, where none is."""
    return [n for n in table.lengths if n > (table.original_len or 0)] or list(table.lengths)


def mean_of(bases: Sequence[Base], table: Table, variant: str, lengths: Sequence[int]) -> float:
    """The mean over lengths, and over those bases that have the variant; of perplexity the exponential of the mean
    loss. nan where one of the lengths is missing."""
    loss = table.metric.kind == "perplexity"
    of_bases = []
    for base in bases:
        cells = base.tables[table.task].cells if table.task in base.tables else {}
        if variant in base.results.variants:
            found = [cells[variant, n].estimate.value if (variant, n) in cells else math.nan for n in lengths]
            of_bases.append(sum(math.log(x) if loss else x for x in found) / len(found))
    mean = sum(of_bases) / len(of_bases)
    return (math.exp(mean) if not mean > 700 else math.inf) if loss else mean


def mean_text(bases: Sequence[Base], table: Table, variant: str, lengths: Sequence[int]) -> str:
    value = mean_of(bases, table, variant, lengths)
    return "" if math.isnan(value) else number(value, table.metric.share)


def shown(table: Table, score: Estimate) -> Estimate:
    """A score as the table has it: of a mean loss the perplexity."""
    if table.metric.kind != "perplexity":
        return score
    value, low, high = (math.exp(min(x, 700.0)) for x in score[:3])
    return Estimate(value, low, high, score.n)


def rank_text(ranked: dict[str, crossed.Ranked], variant: str) -> str:
    """A rank, "=" beside it where another variant has the same, and its interval."""
    if variant not in ranked:
        return ""
    rank = ranked[variant].rank
    tied = sum(other.rank.value == rank.value for other in ranked.values()) > 1
    return f"{rank.value:.0f}{'=' * tied}" + ("" if math.isnan(rank.low) else f" ({rank.low:.0f}–{rank.high:.0f})")


def intervals_note(bases: Sequence[Base]) -> str:
    """What the intervals cover."""
    seeds = len({row.get("seed", 0) for row in bases[0].results.rows}) > 1
    if len(bases) > 1:
        over = f"other bases, trainings and questions, by {len(bases)} bases"
    elif seeds:
        over = "other trainings and questions, on this one base"
    else:
        over = "other questions alone: one base, one training"
    return (
        f"Intervals, 95%, are over {over}. A rank is one more than how many are better; = marks equal scores. What is "
        "not on all bases has no rank." + "\n" * any(has_effective(bases, t) for t in bases[0].tables.values())
    )


def has_mean(table: Table) -> bool:
    """Whether several lengths are beyond the trained one."""
    return sum(length > (table.original_len or 0) for length in table.lengths) > 1


def has_effective(bases: Sequence[Base], table: Table) -> bool:
    """Whether it is one base's, with enough questions for an effective length of any variant."""
    return len(bases) == 1 and any(effective_text(table, variant) != TOO_FEW for variant in table.effective)


if __name__ == "__main__":
    main()
