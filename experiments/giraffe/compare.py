"""What the study on giraffe-mini found, beside the paper: its table, the rank correlations, and the open questions.

    python experiments/giraffe/compare.py runs/giraffe [runs/giraffe_pairs runs/giraffe_instruct] [--save=results.csv]
    python experiments/giraffe/compare.py results.csv

Prints Markdown. Accuracies of the paper (published.csv) are of 50 questions a cell, read from its plots. Intervals are
95% bootstraps: of published cells, their 50 questions anew; here, seeds of training and questions anew, both at once.
"""

import argparse
import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from giraffe_jax import records, report

HERE = Path(__file__).parent
LINES = (100, 150, 175, 200, 300, 400, 500, 600, 680)  # columns of published.csv that are measured here too
QUESTIONS = 50  # of a published cell
RESAMPLES = 4000
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

Values = np.ndarray  # [seeds, lengths, questions], 1 where the answer was right
Table = Mapping[str, Values]
# (variant, seed, what, length) -> whether each question was answered right ("lines"), the loss of each document
# ("perplexity"), or the first loss of its training ("training", of length 0).
Measured = dict[tuple[str, int, str, int], np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workdirs", nargs="+", type=Path, help="of giraffe run, one of each part of the study, or saved"
    )
    parser.add_argument("--save", type=Path, help="a CSV file to write; other seeds that it has are kept")
    args = parser.parse_args(argv)
    measured: Measured = {}
    for workdir in args.workdirs:
        measured |= of_workdir(workdir) if workdir.is_dir() else read_saved(workdir)
    if args.save:
        measured = (read_saved(args.save) if args.save.is_file() else {}) | measured
        save(args.save, measured)
    lengths = sorted({length for _, _, what, length in measured if what == "lines"})
    right, losses = by_variant(measured, lengths)
    published = read_published()
    print(table(right, lengths, published))
    print(against_the_paper(right, published))
    print(loss_and_retrieval(right, losses, lengths))
    print(questions(right, lengths))
    print(first_losses(measured))


def of_workdir(workdir: Path) -> Measured:
    """Returns what a workdir of `giraffe run` holds.

    All windows are of as many tokens, so a document's loss is the mean of its windows'.
    """
    results = report.read([workdir])
    found: dict[tuple[str, int, str, int], dict[Any, list[float]]] = {}
    for row in sorted(results.rows, key=lambda row: results.variants.index(row["variant"])):  # written by any process
        key = (row["variant"], row["seed"], row["task"], row["length"])
        metric = row["metrics"]["teacher" if row["task"] == "lines" else "nll"]
        found.setdefault(key, {}).setdefault(row.get("document", row["example"]), []).append(metric)
    out = {key: np.array([np.mean(x) for _, x in sorted(units.items())]) for key, units in found.items()}
    seeds = results.manifest["config"]["seeds"]
    for variant, curves in results.training.items():
        for curve in curves:
            seed = seeds[0] if curve.seed is None else curve.seed
            out[variant, seed, "training", 0] = np.array([curve.batches[min(curve.batches)]])
    return out


def read_saved(path: Path) -> Measured:
    """Returns what `save` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return {
            (row["variant"], int(row["seed"]), row["what"], int(row["length"])): np.array(
                list(row["values"]) if row["what"] == "lines" else row["values"].split(), float
            )
            for row in csv.DictReader(file)
        }


def save(path: Path, measured: Measured) -> None:
    """Writes one line for each variant, seed and length: questions as 1 for right and 0 for wrong, losses in nats."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "seed", "what", "length", "values"])
    for (*key, what, length), values in measured.items():
        shown = "".join(f"{x:.0f}" for x in values) if what == "lines" else " ".join(f"{x:.4f}" for x in values)
        writer.writerow([*key, what, length, shown])
    records.write_atomically(path, out.getvalue())


def by_variant(measured: Measured, lengths: Sequence[int]) -> tuple[dict[str, Values], dict[str, dict[int, Values]]]:
    """Returns (variant -> [seeds, lengths, questions], variant -> length -> [seeds, documents]), of the seeds of which
    all lengths are there."""
    right: dict[str, Values] = {}
    losses: dict[str, dict[int, Values]] = {}
    texts = sorted({length for _, _, what, length in measured if what == "perplexity"})
    for variant in dict.fromkeys(name for name, *_ in measured):
        seeds = sorted({seed for name, seed, what, _ in measured if (name, what) == (variant, "lines")})
        whole = [s for s in seeds if all((variant, s, "lines", length) in measured for length in lengths)]
        if whole:  # else not finished
            right[variant] = np.array([[measured[variant, s, "lines", length] for length in lengths] for s in whole])
            read = [s for s in whole if all((variant, s, "perplexity", length) in measured for length in texts)]
            if read:
                losses[variant] = {n: np.array([measured[variant, s, "perplexity", n] for s in read]) for n in texts}
    return right, losses


def read_published() -> dict[str, np.ndarray]:
    """Returns run -> accuracy at each of LINES."""
    with open(HERE / "published.csv", encoding="utf-8") as file:
        return {row["run"]: np.array([float(row[str(n)]) for n in LINES]) for row in csv.DictReader(file)}


def table(right: Table, lengths: Sequence[int], published: Mapping[str, np.ndarray]) -> str:
    heads = " | ".join(f"{t:,}<br>{n}" for t, n in zip(lengths, LINES, strict=True))
    lines = [
        "### Line retrieval, % right: here (in the paper)\n",
        f"| tokens here<br>lines there | {heads} | mean |",
        f"|---|{'---:|' * (len(lengths) + 1)}",
    ]
    for name, values in right.items():
        share = [*values.mean((0, 2)), values.mean()]
        there = [*published[name], published[name].mean()] if name in published else [None] * len(share)
        cells = [
            f"{100 * x:.0f}" + ("" if y is None else f" ({100 * y:.0f})") for x, y in zip(share, there, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def against_the_paper(right: Table, published: Mapping[str, np.ndarray]) -> str:
    names = [name for name in right if name in published]
    there = np.stack([published[name] for name in names])

    def ours(rng: np.random.Generator | None) -> np.ndarray:
        return np.stack([mean_of(right[name], rng).mean(-1) for name in names])

    def theirs(rng: np.random.Generator | None) -> np.ndarray:
        return there if rng is None else rng.binomial(QUESTIONS, there) / QUESTIONS

    means = interval(lambda rng: spearman(ours(rng).mean(1), theirs(rng).mean(1)))
    cells = interval(lambda rng: spearman(ours(rng).ravel(), theirs(rng).ravel()))
    chance = permuted(ours(None).mean(1), there.mean(1))
    by_column = [spearman(a, b) for a, b in zip(ours(None).T, there.T, strict=True)]
    low, high = of_a_sample(means[0], len(names))
    columns = ", ".join(f"{n}: {'-' if np.isnan(x) else f'{x:.2f}'}" for n, x in zip(LINES, by_column, strict=True))
    return (
        f"### Ordering against the paper's\n\n{len(names)} runs are in both. Spearman's rank correlation of their mean "
        f"accuracies: {means}, the interval that of the measurements; {low:.2f} to {high:.2f} with the runs taken "
        f"as a sample of methods. {100 * chance:.1f}% of all orders would agree as well. Of all "
        f"{len(names) * len(LINES)} cells: {cells}. By column (lines): {columns}.\n"
    )


def loss_and_retrieval(right: Table, losses: Mapping[str, dict[int, np.ndarray]], lengths: Sequence[int]) -> str:
    names = [name for name in right if name in losses and "pairs" not in name and "tun" not in name]
    lines = [
        "### Does the loss rank methods as retrieval does?\n",
        "| loss at | retrieval at | Spearman's correlation over variants | lowest loss | best retrieval "
        f"| retrieval of those within {NEAR:g} nats of the lowest loss |",
        "|---:|---:|---|---|---|---|",
    ]
    for window in sorted(losses[names[0]]):
        at = int(np.argmin([abs(t - window) for t in lengths]))

        def both(rng: np.random.Generator | None, window: int = window, at: int = at) -> tuple[np.ndarray, np.ndarray]:
            loss = np.array([mean_of(losses[n][window], rng).mean() for n in names])
            return loss, np.array([mean_of(right[n][:, at], rng).mean() for n in names])

        loss, share = both(None)
        found = interval(
            lambda rng, both=both: spearman(*(x * sign for x, sign in zip(both(rng), (-1, 1), strict=True)))
        )
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
        there = [(a, b) for a, b in pairs if a in right and b in right]
        lines += [f"| *{question}* |{' |' * len(spans)}"] if there else []
        for a, b in there:
            cells = [
                interval(lambda rng, s=s, a=a, b=b: difference(right[a][:, s], right[b][:, s], rng))
                for s in spans.values()
            ]
            lines.append(f"| {a} less {b} | {' | '.join(cell.points() for cell in cells)} |")
    return "\n".join(lines) + "\n"


def first_losses(measured: Measured) -> str:
    names = dict.fromkeys(name for name, _, what, _ in measured if what == "training")
    lines = ["### First losses of trainings, in nats\n", "| | the first step's, mean over seeds |", "|---|---:|"]
    for variant in names:
        own = [x[0] for (name, _, what, _), x in measured.items() if (name, what) == (variant, "training")]
        lines.append(f"| {variant} | {np.mean(own):.2f} |")
    return "\n".join(lines) + "\n"


class Interval(tuple):
    """(value, low, high)."""

    def __str__(self) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*self)

    def points(self) -> str:
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in self))


def interval(statistic: Callable[[np.random.Generator | None], float], resamples: int = RESAMPLES) -> Interval:
    """Returns a statistic of what was measured, with a percentile interval of its resamples."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng) for _ in range(resamples)]
    return Interval((statistic(None), *np.nanquantile(drawn, (0.025, 0.975))))


def mean_of(values: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Returns values [seeds, ..., questions] averaged over seeds, resampled along both where there is a generator."""
    if rng is not None:
        values = values[rng.integers(len(values), size=len(values))]
        values = values[..., rng.integers(values.shape[-1], size=values.shape[-1])]
    return values.mean(0)


def difference(mine: Values, other: Values, rng: np.random.Generator | None) -> float:
    """Returns mean accuracy less the other's; the same seeds and questions are drawn for both where both have them."""
    seeds = min(len(mine), len(other))
    return float(mean_of(mine[:seeds] - other[:seeds], rng).mean())


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the correlation of ranks, ties at their mean; nan where one side has no order."""
    a, b = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else float("nan")


def of_a_sample(correlation: float, n: int) -> tuple[float, float]:
    """Returns the 95% interval of a rank correlation of n pairs: Bonett and Wright 2000, on Fisher's scale."""
    half = 1.96 * np.sqrt((1 + correlation**2 / 2) / (n - 3))
    return float(np.tanh(np.arctanh(correlation) - half)), float(np.tanh(np.arctanh(correlation) + half))


def permuted(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of all orders of y (of 20,000 drawn ones beyond 8) that correlate with x at least as well."""
    here = spearman(x, y)
    if len(y) <= 8:
        orders = (np.array(order) for order in itertools.permutations(y))
    else:
        rng = np.random.default_rng(0)
        orders = (rng.permutation(y) for _ in range(20_000))
    return float(np.mean([spearman(x, order) >= here - 1e-12 for order in orders]))


if __name__ == "__main__":
    main()
