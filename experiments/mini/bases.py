"""Trains the five bases of giraffe-mini, which differ in nothing but the seed of their weights and batches.

    python experiments/mini/bases.py WORKDIR [--jobs=2]

Makes WORKDIR/data by prepare.py where it is missing, and WORKDIR/base-3 to base-7 by `giraffe train`, as many at once
as --jobs says, each on its own share of the cores. Started again, it goes on where it was: what is finished stays, and
a training goes on from its last checkpoint. What a training says is in WORKDIR/base-SEED.log.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from giraffe_jax.lab.shares import Share, in_words, inside, shares

HERE = Path(__file__).parent
SEEDS = (3, 4, 5, 6, 7)  # 3 ships as giraffe-mini; 0 to 2 were looked at beyond 256 tokens before, and are not used


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="the folder for data and bases")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once (2)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs: got {args.jobs}; expected 1 or more.")
    data = args.workdir / "data"
    if not (data / "corpus.json").is_file():  # what prepare.py writes last
        subprocess.run([sys.executable, str(HERE / "prepare.py"), str(data)], check=True)
    failed = follow(args.workdir, shares(min(args.jobs, len(SEEDS))))
    if failed:
        logs = ", ".join(str(args.workdir / f"base-{seed}.log") for seed in failed)
        raise SystemExit(f"{len(failed)} of {len(SEEDS)} bases failed; {logs} says why. The same command goes on.")


def command(workdir: Path, seed: int) -> list[str]:
    """Returns the command that trains one base, or goes on with it."""
    config = f"{HERE / 'config.py'}:{workdir / 'data'},{seed}"
    return [sys.executable, "-m", "giraffe_jax.cli", "train", f"--config={config}",
            f"--workdir={workdir / f'base-{seed}'}", "--quiet"]  # fmt: skip


def follow(workdir: Path, shares: Sequence[Share]) -> list[int]:
    """Trains all bases, one at a time on each share of the machine, and returns the seeds of those that failed.

    However this ends, no training is left running: each is told once, so that it saves what it has.
    """
    print(f"{len(SEEDS)} bases, by {in_words(list(shares))}", flush=True)
    waiting, free, failed = list(SEEDS), list(shares), []
    running: list[tuple[int, Share, float, subprocess.Popen]] = []
    try:
        while waiting or running:
            while waiting and free:
                seed, share = waiting.pop(0), free.pop()
                with inside(share), open(workdir / f"base-{seed}.log", "a", encoding="utf-8") as log:
                    started = subprocess.Popen(
                        command(workdir, seed), stdout=log, stderr=log, env=os.environ | dict(share.env),
                        process_group=0,  # a terminal's Ctrl-C comes here alone
                    )  # fmt: skip
                running.append((seed, share, time.monotonic(), started))
            time.sleep(0.1)
            for one in [one for one in running if one[-1].poll() is not None]:
                seed, share, began, process = one
                running.remove(one)
                free.append(share)
                failed += [seed] * (process.returncode != 0)
                how = "done" if process.returncode == 0 else f"failed, with status {process.returncode},"
                print(f"base-{seed}: {how} after {time.monotonic() - began:.0f} s", flush=True)
    finally:
        for *_, process in running:
            process.terminate()
        for *_, process in running:
            process.wait()
    return sorted(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main()
