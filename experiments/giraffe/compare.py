"""What the study on giraffe-mini found, beside the paper: its table, the rank correlations, and the open questions.

    python experiments/giraffe/compare.py runs/giraffe [runs/giraffe_pairs runs/giraffe_instruct] [--save=results.csv]
    python experiments/giraffe/compare.py runs/giraffe base-4=runs/giraffe_4 base-5=runs/giraffe_5
    python experiments/giraffe/compare.py results.csv

Prints Markdown. Accuracies of the paper (published.csv) are of 50 questions a cell, read from its plots. Intervals are
95% bootstraps: of published cells, their 50 questions anew; here, bases (of one base, seeds of training) and questions
anew, as giraffe_jax/evals/crossed.py has it. What not all bases have is compared on those that have it.
"""

import argparse
import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from measured import Measured, Runs, by_base, by_variant, of_all, read_saved, save, shared
from scipy.stats import rankdata

from giraffe_jax.evals import crossed

HERE = Path(__file__).parent
LINES = (100, 150, 175, 200, 300, 400, 500, 600, 680)  # columns of published.csv that are measured here too
QUESTIONS = 50  # of a published cell
NEAR = 0.05  # nats: 5% of perplexity
# What is compared: question -> (variant, other variant) pairs, differences of accuracy over all lengths.
PAIRS = {
    "xPos in the other order of pairs": [
        ("xPos", "scale 1"),
        ("scale 1, other pairs", "scale 1"),
        ("xPos, other pairs", "xPos"),
        ("xPos, other pairs", "scale 1, other pairs"),
    ],
    "scale with truncation": [("scale 4, truncated", "scale 4"), ("scale 4, truncated", "truncated")],
    "power with randomisation": [("power 0.5, randomised", "power 0.5"), ("randomised, scale 4", "scale 4")],
    "reading at another scale than trained": [
        ("scale 1 -> 2", "scale 1"),
        ("scale 4 -> 2", "scale 4"),
        ("scale 4 -> 8", "scale 4"),
        ("scale 4 -> 16", "scale 4"),
        ("scale 16 -> 12", "scale 16"),
        ("scale 16 -> 32", "scale 16"),
    ],
    "instruction tuning": [
        ("tuned at 256", "no tuning"),
        ("tuned at 512", "no tuning"),
        ("tuned at 512", "tuned at 256"),
        ("tuned at 512 -> 8", "tuned at 512"),
    ],
}

Table = Mapping[str, Runs]  # variant -> its answers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workdirs", nargs="+", metavar="[BASE=]WORKDIR", help="of giraffe run, one of each part and base, or saved"
    )
    parser.add_argument("--save", type=Path, help="a CSV file to write; other bases and seeds that it has are kept")
    args = parser.parse_args(argv)
    measured = of_all(args.workdirs)
    if args.save:
        measured = (read_saved(args.save) if args.save.is_file() else {}) | measured
        save(args.save, measured)
    lengths = sorted({length for *_, what, length in measured if what == "lines"})
    right, losses = by_variant(measured, lengths)
    published = read_published()
    print(table(right, lengths, published))
    print(against_the_paper(right, published))
    print(loss_and_retrieval(right, losses, lengths))
    print(questions(right, lengths))
    print(first_losses(measured))


def read_published() -> dict[str, np.ndarray]:
    """Returns run -> accuracy at each of LINES."""
    with open(HERE / "published.csv", encoding="utf-8") as file:
        return {row["run"]: np.array([float(row[str(n)]) for n in LINES]) for row in csv.DictReader(file)}


def table(right: Table, lengths: Sequence[int], published: Mapping[str, np.ndarray]) -> str:
    heads = " | ".join(f"{t:,}<br>{n}" for t, n in zip(lengths, LINES, strict=True))
    runs = {run for own in right.values() for run in own}
    bases = {base for base, _ in runs}
    whole = {name: by_base(own, sorted(runs)) for name, own in right.items() if runs <= own.keys()}
    found = crossed.ranked(whole) if whole else {}
    lines = [
        "### Line retrieval, % right: here (in the paper)\n",
        f"| tokens here<br>lines there | {heads} | mean | 95% | rank | 95% |",
        f"|---|{'---:|' * (len(lengths) + 4)}",
    ]
    for name, own in right.items():
        by_length = np.mean([base.mean((0, 2)) for base in by_base(own, list(own))], 0)
        share = [*by_length, by_length.mean()]
        there = [*published[name], published[name].mean()] if name in published else [None] * len(share)
        cells = [
            f"{100 * x:.0f}" + ("" if y is None else f" ({100 * y:.0f})") for x, y in zip(share, there, strict=True)
        ]
        cells += ranked_cells(found, name)
        count = len({base for base, _ in own})
        mark = f" ({count} of {len(bases)} bases)" * (count < len(bases))
        lines.append(f"| {name}{mark} | {' | '.join(cells)} |")
    said = f"{len(bases)} bases: {', '.join(sorted(bases))}. " * (len(bases) > 1)
    return "\n".join(lines) + f"\n\n{said}A rank is one more than how many are better here; = marks equal means.\n"


def ranked_cells(ranked: Mapping[str, crossed.Ranked], name: str) -> list[str]:
    """The interval of a mean, the rank and its interval; empty for what not all bases and seeds have."""
    if name not in ranked:
        return [""] * 3
    score, rank = ranked[name]
    tied = sum(other.rank.value == rank.value for other in ranked.values()) > 1
    ends = f"{100 * score.low:.0f} to {100 * score.high:.0f}"
    return [ends, f"{rank.value:.0f}{'=' * tied}", f"{rank.low:.0f} to {rank.high:.0f}"]


def against_the_paper(right: Table, published: Mapping[str, np.ndarray]) -> str:
    names = [name for name in right if name in published]
    runs = shared(right[name] for name in names)
    if not runs:
        raise SystemExit(f"no base and seed has finished all of {', '.join(names)}, which the paper has too.")
    there = np.stack([published[name] for name in names])
    ours, drawn = crossed.draws({name: by_base(right[name], runs) for name in names})
    theirs = np.random.default_rng(0).binomial(QUESTIONS, there, drawn.shape) / QUESTIONS
    flat = (len(drawn), -1)
    means = Interval.of(spearman(ours.mean(1), there.mean(1)), spearman(drawn.mean(2), theirs.mean(2)))
    cells = Interval.of(
        spearman(ours.ravel(), there.ravel()), spearman(drawn.reshape(flat), theirs.reshape(flat))
    )  # fmt: skip
    chance = permuted(ours.mean(1), there.mean(1))
    low, high = of_a_sample(means[0], len(names))
    by_column = spearman(ours.T, there.T)
    columns = ", ".join(f"{n}: {'-' if np.isnan(x) else f'{x:.2f}'}" for n, x in zip(LINES, by_column, strict=True))
    return (
        f"### Ordering against the paper's\n\n{len(names)} runs are in both. Spearman's rank correlation of their mean "
        f"accuracies: {means}, the interval that of the measurements; {low:.2f} to {high:.2f} with the runs taken "
        f"as a sample of methods. {100 * chance:.1f}% of all orders would agree as well. Of all "
        f"{len(names) * len(LINES)} cells: {cells}. By column (lines): {columns}.\n"
    )


def loss_and_retrieval(right: Table, losses: Mapping[str, dict[int, Runs]], lengths: Sequence[int]) -> str:
    names = [name for name in right if name in losses and "pairs" not in name and "tun" not in name]
    lines = [
        "### Does the loss rank methods as retrieval does?\n",
        "| loss at | retrieval at | Spearman's correlation over variants | lowest loss | best retrieval "
        f"| retrieval of those within {NEAR:g} nats of the lowest loss |",
        "|---:|---:|---|---|---|---|",
    ]
    windows = sorted(losses[names[0]]) if names else []
    runs = shared(losses[name][windows[0]] for name in names) if windows else []
    for window in windows if runs else []:
        at = int(np.argmin([abs(t - window) for t in lengths]))
        # The same bases are drawn for both, since it is the same models that have read and answered.
        loss, loss_drawn = (
            x[..., 0] for x in crossed.draws({name: by_base(losses[name][window], runs) for name in names})
        )
        share, share_drawn = (
            x[..., at] for x in crossed.draws({name: by_base(right[name], runs) for name in names})
        )  # fmt: skip
        found = Interval.of(spearman(-loss, share), spearman(-loss_drawn, share_drawn))
        low, high = int(loss.argmin()), int(share.argmax())
        near = share[loss <= loss.min() + NEAR]
        lines.append(
            f"| {window:,} | {lengths[at]:,} | {found} | {names[low]} ({loss[low]:.2f} nats; retrieval "
            f"{100 * share[low]:.0f}%) | {names[high]} ({100 * share[high]:.0f}%; {loss[high]:.2f} nats) "
            f"| {100 * near.min():.0f} to {100 * near.max():.0f}% ({len(near)} variants) |"
        )
    return "\n".join(lines) + "\n"


def questions(right: Table, lengths: Sequence[int]) -> str:
    lines = ["### Differences, in points of accuracy\n"]
    spans = {"all lengths": slice(None)} | {
        f"{lengths[a]:,} to {lengths[b]:,}": slice(a, b + 1) for a, b in ((0, 2), (3, 5), (6, 8))
    }
    lines += [f"| | {' | '.join(spans)} |", f"|---|{'---:|' * len(spans)}"]
    for question, pairs in PAIRS.items():
        there = [(a, b) for a, b in pairs if a in right and b in right and shared((right[a], right[b]))]
        lines += [f"| *{question}* |{' |' * len(spans)}"] if there else []
        for a, b in there:
            cells = [difference(right[a], right[b], span).points() for span in spans.values()]
            lines.append(f"| {a} less {b} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def first_losses(measured: Measured) -> str:
    names = dict.fromkeys(name for _, name, _, what, _ in measured if what == "training")
    lines = [
        "### First losses of trainings, in nats\n",
        "| | the first step's, mean over bases and seeds |",
        "|---|---:|",
    ]
    for variant in names:
        own = [x[0] for (_, name, _, what, _), x in measured.items() if (name, what) == (variant, "training")]
        lines.append(f"| {variant} | {np.mean(own):.2f} |")
    return "\n".join(lines) + "\n"


class Interval(tuple):
    """(value, low, high)."""

    @classmethod
    def of(cls, value: np.ndarray | float, drawn: np.ndarray) -> "Interval":
        """A statistic of what was measured, and the middle 95% of its resamples."""
        return cls((float(value), *np.nanquantile(drawn, (0.025, 0.975))))

    def __str__(self) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*self)

    def points(self) -> str:
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in self))


def difference(first: Runs, other: Runs, span: slice = slice(None)) -> Interval:
    """Returns mean accuracy less the other's over a span of lengths, on the bases and seeds that both have."""
    runs = shared((first, other))
    value, drawn = crossed.draws({"less": by_base({run: first[run] - other[run] for run in runs}, runs)})
    return Interval.of(value[0, span].mean(), drawn[:, 0, span].mean(1))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the correlation of ranks along the last axis, ties at their mean; nan where one side has no order."""
    # Rounded, since means of as many right answers are equal, but not to the last bit.
    a, b = (rankdata(np.round(values, 9), axis=-1) - (values.shape[-1] + 1) / 2 for values in (x, y))
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.full(np.shape(norm), np.nan), where=norm > 0)


def of_a_sample(correlation: float, n: int) -> tuple[float, float]:
    """Returns the 95% interval of a rank correlation of n pairs: Bonett and Wright 2000, on Fisher's scale."""
    half = 1.96 * np.sqrt((1 + correlation**2 / 2) / (n - 3))
    return float(np.tanh(np.arctanh(correlation) - half)), float(np.tanh(np.arctanh(correlation) + half))


def permuted(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of all orders of y (of 20,000 drawn ones beyond 8) that correlate with x at least as well."""
    if len(y) <= 8:
        orders = np.array(list(itertools.permutations(y)))
    else:
        rng = np.random.default_rng(0)
        orders = np.array([rng.permutation(y) for _ in range(20_000)])
    return float(np.mean(spearman(np.broadcast_to(x, orders.shape), orders) >= spearman(x, y) - 1e-12))


if __name__ == "__main__":
    main()
