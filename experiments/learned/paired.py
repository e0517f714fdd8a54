"""Every variant against one on the same windows and questions, with 95% intervals of the difference.

    python experiments/learned/paired.py "yarn 8" [results.jsonl]

Of perplexity the ratio, documents resampled; of lines the difference of the shares right, in points, and McNemar's p.
Windows differ far more from each other than methods do, so intervals of single scores overlap where these are clear.
Seeds of a training count as their mean on a window; questions differ between seeds.
"""

import sys
from pathlib import Path

import numpy as np

from giraffe_jax.evals.metrics import PERPLEXITY, TEACHER
from giraffe_jax.records import read_rows
from giraffe_jax.report.paired import difference
from giraffe_jax.report.scores import collect

SHOWN = (("perplexity", PERPLEXITY), ("lines", TEACHER))


def main(base: str, path: Path = Path(__file__).parent / "results.jsonl") -> None:
    """Prints a line for each task, length and variant that shares windows or questions with `base`."""
    results = collect(read_rows(path))
    if base not in results.variants:
        sys.exit(f"{path}: no variant {base!r}; there are {', '.join(map(repr, results.variants))}.")
    for task, metric in SHOWN:
        for length in results.lengths(task):
            for variant in results.variants:
                found = difference(results, task, metric, length, variant, base)
                if variant == base or found is None:
                    continue
                e = found.estimate
                if task == "perplexity":
                    value, low, high = np.exp([e.value, e.low, e.high])
                    said = f"/ {base}  {value:.3f} ({low:.3f}-{high:.3f})"
                else:
                    value, low, high = 100 * np.array([e.value, e.low, e.high])
                    said = f"- {base}  {value:+.1f} ({low:+.1f} to {high:+.1f}), p {found.p:.2g}"
                print(f"{task:<10} {length:>5,}  {variant:<37} {said}, {found.pairs}")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
