"""What the study measured: read from workdirs of `giraffe run`, kept in a CSV file, and put side by side.

A measurement is of a base, which trainings start from, a variant and a seed of training and questions.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax import records, report

MINI = "giraffe-mini"  # the base of what does not name one
# (base, variant, seed, what, length) -> whether each question was answered right ("lines"), the loss of each document
# ("perplexity"), or the first loss of its training ("training", of length 0).
Measured = dict[tuple[str, str, int, str, int], np.ndarray]
# (base, seed) -> [lengths, questions]: 1 where the answer was right; or [1, documents], losses in nats.
Runs = Mapping[tuple[str, int], np.ndarray]


def of_all(words: Iterable[str]) -> Measured:
    """Returns what all of several workdirs or saved files hold, each "PATH" or "BASE=PATH".

    SystemExit where two have measured the same and it is not said that their bases differ.
    """
    measured: Measured = {}
    for word in words:
        base, _, path = word.rpartition("=")
        found = (of_workdir if Path(path).is_dir() else read_saved)(Path(path), base or MINI)
        both = next((key for key in found if key in measured), None)
        if both is not None:
            raise SystemExit(
                f"{path}: {both[1]!r} of base {both[0]} and seed {both[2]} is in an earlier argument too; of another "
                "base give it as BASE=WORKDIR."
            )
        measured |= found
    return measured


def of_workdir(workdir: Path, base: str = MINI) -> Measured:
    """Returns what a workdir of `giraffe run` holds.

    All windows are of as many tokens, so a document's loss is the mean of its windows'.
    """
    results = report.read([workdir])
    found: dict[tuple[str, str, int, str, int], dict[Any, list[float]]] = {}
    for row in sorted(results.rows, key=lambda row: results.variants.index(row["variant"])):  # written by any process
        key = (base, row["variant"], row["seed"], row["task"], row["length"])
        metric = row["metrics"]["teacher" if row["task"] == "lines" else "nll"]
        found.setdefault(key, {}).setdefault(row.get("document", row["example"]), []).append(metric)
    out = {key: np.array([np.mean(x) for _, x in sorted(units.items())]) for key, units in found.items()}
    seeds = results.manifest["config"]["seeds"]
    for variant, curves in results.training.items():
        for curve in curves:
            seed = seeds[0] if curve.seed is None else curve.seed
            out[base, variant, seed, "training", 0] = np.array([curve.batches[min(curve.batches)]])
    return out


def read_saved(path: Path, base: str = MINI) -> Measured:
    """Returns what `save` wrote; of files without a column for it the base is as given."""
    with open(path, encoding="utf-8", newline="") as file:
        return {
            (row.get("base", base), row["variant"], int(row["seed"]), row["what"], int(row["length"])): np.array(
                list(row["values"]) if row["what"] == "lines" else row["values"].split(), float
            )
            for row in csv.DictReader(file)
        }


def save(path: Path, measured: Measured) -> None:
    """Writes a line for each base, variant, seed and length: 1 for right and 0 for wrong, or losses in nats."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["base", "variant", "seed", "what", "length", "values"])
    for (*key, what, length), values in measured.items():
        shown = "".join(f"{x:.0f}" for x in values) if what == "lines" else " ".join(f"{x:.4f}" for x in values)
        writer.writerow([*key, what, length, shown])
    records.write_atomically(path, out.getvalue())


def by_variant(measured: Measured, lengths: Sequence[int]) -> tuple[dict[str, Runs], dict[str, dict[int, Runs]]]:
    """Returns (variant -> its answers, variant -> length -> its losses), of bases and seeds that have all lengths.

    Weights that are not trained read a text once, whatever the seed: their losses count for all seeds.
    """
    right: dict[str, Runs] = {}
    losses: dict[str, dict[int, Runs]] = {}
    texts = sorted({length for *_, what, length in measured if what == "perplexity"})
    trained = {(base, name) for base, name, _, what, _ in measured if what == "training"}
    for variant in dict.fromkeys(name for _, name, *_ in measured):
        runs = sorted({(base, seed) for base, name, seed, what, _ in measured if (name, what) == (variant, "lines")})
        answers = {run: cells(measured, variant, run, "lines", lengths) for run in runs}
        whole = {run: np.array(found) for run, found in answers.items() if len(found) == len(lengths)}
        if not whole:  # not finished
            continue
        right[variant] = whole
        read: dict[tuple[str, int], list[np.ndarray]] = {}
        for base, seed in whole:
            fixed = (base, variant.partition(" -> ")[0]) not in trained
            seeds = [seed, *(other for of, other in whole if of == base and fixed)]
            found = (cells(measured, variant, (base, one), "perplexity", texts) for one in seeds)
            first = next((own for own in found if len(own) == len(texts)), None)
            if first:
                read[base, seed] = first
        if read:
            losses[variant] = {n: {run: own[i][None] for run, own in read.items()} for i, n in enumerate(texts)}
    return right, losses


def cells(
    measured: Measured, variant: str, run: tuple[str, int], what: str, lengths: Sequence[int]
) -> list[np.ndarray]:
    """Returns what a base and seed of a variant has, at those of the lengths where it has it."""
    keys = ((run[0], variant, run[1], what, length) for length in lengths)
    return [measured[key] for key in keys if key in measured]


def shared(parts: Iterable[Runs]) -> list[tuple[str, int]]:
    """Returns the bases and seeds that all have; empty where they have none together."""
    first, *others = [list(part) for part in parts]
    return [run for run in first if all(run in other for other in others)]


def by_base(runs: Runs, which: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """Returns some bases and seeds of a variant as `evals.crossed` takes them: of each base [seeds, lengths,
    questions]."""
    bases = dict.fromkeys(base for base, _ in which)
    return [np.stack([runs[run] for run in which if run[0] == base]) for base in bases]
