"""How retrieval came in a training run of giraffe-mini: lines and passkeys by length, at every checkpoint kept.

    python experiments/mini/curve.py mini [mini_seed1 ...] [--n=400]
    python experiments/mini/curve.py mini --last --lengths 1024 --yarn 1 4 8     # how far yarn carries it, untrained

Prints a table for each run: the share of questions answered (teacher-forced argmax), lines n questions a cell, passkeys
n / 5 at each of five depths.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from giraffe_jax import checkpoint, evals
from giraffe_jax.evals import run, stats
from giraffe_jax.inference import LM
from giraffe_jax.loading import load

LENGTHS = (32, 64, 128, 256)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="of giraffe train")
    parser.add_argument("--n", type=int, default=100, help="questions of a cell (100)")
    parser.add_argument("--last", action="store_true", help="the last checkpoint alone")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a prompt (32 64 128 256)")
    parser.add_argument("--yarn", type=float, nargs="+", default=(1.0,), help="factors of yarn; 1 is plain RoPE (1)")
    args = parser.parse_args(argv)
    for workdir in args.workdirs:
        with checkpoint.manager(workdir) as checkpoints:
            steps = checkpoint.steps(checkpoints)
        heads = [f"{task} {length:,}" for task in ("lines", "passkey") for length in args.lengths]
        print(f"{workdir}, n={args.n}\n| step | yarn | {' | '.join(heads)} |\n|---:|---:|{'---:|' * len(heads)}")
        for step in steps[-1:] if args.last else steps:
            lm = model(workdir, step)
            for factor in args.yarn:
                cells = " | ".join(f"{100 * x:.0f}%" for x in shares(lm, args.n, args.lengths, factor))
                print(f"| {step:,} | {factor:g} | {cells} |", flush=True)


def model(workdir: str, step: int) -> LM:
    """The model of a checkpoint, without positions of its own."""
    loaded = load(f"{workdir}@{step}")
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, positions=()))


def shares(lm: LM, n: int, lengths: Sequence[int] = LENGTHS, yarn: float = 1.0) -> list[float]:
    """The share right of lines, then of passkeys, at each length under yarn of a factor (1: plain RoPE)."""
    tasks = [
        evals.build(dict(name="lines", lengths=lengths, n=n, style="compact")),
        evals.build(dict(name="passkey", lengths=lengths, n=n // 5, style="compact")),
    ]
    positions = [] if yarn == 1 else [dict(name="yarn", factor=yarn)]
    rows = list(run.evaluate(lm, tasks, lambda length: lm.config.bind(length, scaling=positions)))
    return [
        stats.share([r for r in rows if (r["task"], r["length"]) == (task.name, length)], "teacher").value
        for task in tasks
        for length in lengths
    ]


if __name__ == "__main__":
    main()
