"""Run an experiment: evaluate every variant on every task at every length, then write the report.

  giraffe run experiments/quickstart --workdir=runs/quickstart
  giraffe run quickstart                                          # the same, from anywhere

Results that the workdir already holds are not computed again: the same command resumes a stopped experiment, and a
variant added to the config costs only itself. If one of your own methods, a document, the weights or anything else that
affects results has changed, the run says so and measures the cells that depend on it again; --keep keeps their rows.

--jobs=N runs N processes that divide the machine's cores and its GPUs, or the memory of a single GPU. They show one
line of progress, one Ctrl-C ends all of them, and the same command resumes, even with another N. The same command
started several times on one file system shares the work too: each process measures variants that no other one has
claimed, and the variants of a killed process go to the next one that is free.

--dry-run prints what is left to do and estimates how long it takes on this machine: it times one call of each kind and
writes nothing.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe run`."""
    parser.add_argument(
        "config",
        metavar="FILE",
        help="an experiment's folder or config file, FILE[:ARG], or the name of one that ships: quickstart",
    )
    configs.distributed_argument(parser)
    jobs = "processes that share the machine, at most one per core; each measures different variants (default 1)"
    parser.add_argument("--jobs", type=configs.number(int, 1), default=1, metavar="N", help=jobs)
    dry = "count what is left to do, time one call of each kind, and stop"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    parser.add_argument("--dry_run", action="store_true", dest="dry_run", help=argparse.SUPPRESS)
    configs.keep_argument(parser)
    configs.workdir_argument(parser, "where results go; by default runs/<name of the experiment>", required=False)


def run(args: argparse.Namespace) -> int:
    """Runs, resumes or estimates the experiment; returns 1 if any part failed, else 0."""
    job = os.environ.pop("GIRAFFE_JOB", None)  # set in processes that lab/jobs.py has started
    if job is not None:
        return _work(args, job)
    shares = _shares(args) if args.jobs > 1 else []
    if shares and args.dry_run:
        os.environ.update(shares[0].env)  # before JAX is initialised: the estimate times calls with one job's share
    config, workdir = _config(args)
    if args.dry_run:
        from giraffe_jax.lab.estimate import estimate
        from giraffe_jax.lab.shares import inside

        jobs = max(1, len(shares))
        with inside(shares[0]) if shares else contextlib.nullcontext():
            estimated = estimate(
                config, workdir, lambda line: print(line, file=sys.stderr, flush=True), keep=args.keep, jobs=jobs
            )
        print(f"{config.name}, in {workdir}: {estimated}")
        return 0
    if args.jobs > 1:
        from giraffe_jax.lab import jobs

        return jobs.run(config, workdir, _words(args, workdir), args.jobs, keep=args.keep)
    from giraffe_jax.lab.run import run

    return 1 if run(config, workdir, keep=args.keep).failures else 0


def _config(args: argparse.Namespace) -> tuple[Any, str | Path]:
    config = configs.load(args)
    configs.quiet(args)
    name = str(config.get("name") or Path(args.config.partition(":")[0]).stem)
    return config, args.workdir or Path("runs") / name


def _work(args: argparse.Namespace, job: str) -> int:
    from giraffe_jax.lab import jobs

    jobs.end_with_starter()
    config, workdir = _config(args)
    jobs.work(config, workdir, job, keep=args.keep)
    return 0


def _shares(args: argparse.Namespace) -> list[Any]:
    """Returns each job's share of this machine; rejects --jobs that cannot work before anything is read."""
    from giraffe_jax.config import ConfigError
    from giraffe_jax.lab.shares import shares

    if args.distributed:
        raise ConfigError(
            f"--jobs: got {args.jobs} with --distributed. Processes of --distributed share each computation, jobs work "
            "independently. Allowed: one of the two flags."
        )
    return shares(args.jobs)


def _words(args: argparse.Namespace, workdir: str | Path) -> list[str]:
    """Returns the command-line words of a job, after `giraffe`."""
    flags = ["--keep"] * args.keep + ["--debug"] * args.debug + [f"--methods={folder}" for folder in args.methods]
    return ["run", args.config, f"--workdir={workdir}", f"--jobs={args.jobs}", *flags, *args.overrides]
