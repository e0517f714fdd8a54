"""Perplexity of every variant over that of one, on the same windows, with the bootstrap interval of the ratio.

    python experiments/learned/paired.py "yarn 8" [results.jsonl]

Windows differ far more from each other than methods do, so intervals of single scores overlap where ratios are clear.
"""

import sys
from pathlib import Path

import numpy as np

from giraffe_jax.evals.stats import bootstrap_mean
from giraffe_jax.records import read_rows


def main(base: str, path: Path = Path(__file__).parent / "results.jsonl") -> None:
    nats: dict[tuple[str, int], dict[int, float]] = {}
    tokens: dict[tuple[int, int], int] = {}
    for row in read_rows(path):
        if row["task"] == "perplexity" and "metrics" in row:
            window, found = (row["length"], row["example"]), row["metrics"]
            tokens[window] = found["tokens"]
            nats.setdefault((row["variant"], row["length"]), {})[row["example"]] = found["nll"] * found["tokens"]
    for (variant, length), sums in nats.items():
        more = [sums[i] - nats[base, length][i] for i in sums]
        e = bootstrap_mean(more, [tokens[length, i] for i in sums])
        value, low, high = np.exp([e.value, e.low, e.high])
        print(f"{length:>5,}  {variant:<27} / {base}  {value:.3f} ({low:.3f}-{high:.3f})")


main(sys.argv[1], *map(Path, sys.argv[2:]))
