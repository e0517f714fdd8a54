"""How retrieval came in a training run of giraffe-mini: lines and passkeys by length, at every checkpoint kept.

    python experiments/mini/curve.py mini [mini_seed1 ...] [--n=400]

Prints a table for each run: the share of questions answered (teacher-forced argmax), n questions a cell, inside the
trained length.
"""

import argparse
import dataclasses

from giraffe_jax import checkpoint, evals
from giraffe_jax.decode import LM
from giraffe_jax.evals import run, stats
from giraffe_jax.train import load

LENGTHS = (32, 64, 128, 256)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="of giraffe train")
    parser.add_argument("--n", type=int, default=100, help="questions of a cell (100)")
    parser.add_argument("--last", action="store_true", help="the last checkpoint alone")
    args = parser.parse_args(argv)
    for workdir in args.workdirs:
        with checkpoint.manager(workdir) as checkpoints:
            steps = sorted(checkpoints.all_steps())
        heads = [f"{task} {length}" for task in ("lines", "passkey") for length in LENGTHS]
        print(f"{workdir}, n={args.n}\n| step | {' | '.join(heads)} |\n|---:|{'---:|' * len(heads)}")
        for step in steps[-1:] if args.last else steps:
            cells = " | ".join(f"{100 * x:.0f}%" for x in shares(workdir, step, args.n))
            print(f"| {step:,} | {cells} |", flush=True)


def shares(workdir: str, step: int, n: int) -> list[float]:
    """The share right of lines and of passkeys at each length."""
    loaded = load(workdir, step=step)
    lm = LM(dataclasses.replace(loaded.model, positions=()), loaded.params, loaded.tokenizer)
    tasks = [
        evals.build(dict(name="lines", lengths=LENGTHS, n=n, style="compact")),
        evals.build(dict(name="passkey", lengths=LENGTHS, n=n // 5, style="compact")),
    ]
    rows = list(run.evaluate(lm, tasks, lm.config.bind))
    return [
        stats.share([r for r in rows if (r["task"], r["length"]) == (task.name, length)], "teacher").value
        for task in tasks
        for length in LENGTHS
    ]


if __name__ == "__main__":
    main()
