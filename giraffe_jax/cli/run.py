"""Run an experiment: measure every variant on every task at every length, then write the report.

  giraffe run experiments/quickstart --workdir=runs/quickstart

What the workdir already holds is not computed again, so a stopped experiment is continued by the same command, and a
variant added to the config costs only itself. Where a method of your own has been edited, or a document, the weights or
anything else that decides numbers, that is named and the cells that depend on it are measured again; --keep keeps their
rows. The same command started several times shares the work: each process
measures variants that no other one has taken, and a killed one's go to whoever comes next. --dry-run says what is left
to do and about how long this machine will take for it: it times one call of each kind, and writes nothing.
"""

import argparse
from pathlib import Path

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="FILE", help="an experiment's folder or config file, FILE[:ARG]")
    configs.distributed_argument(parser)
    dry = "count what is left to do, time one call of each kind, and stop"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    parser.add_argument("--dry_run", action="store_true", dest="dry_run", help=argparse.SUPPRESS)
    configs.keep_argument(parser)
    configs.workdir_argument(parser, "where results go; by default runs/<name of the experiment>", required=False)


def run(args: argparse.Namespace) -> int:
    config = configs.load(args)
    import sys

    from giraffe_jax.lab.run import run

    configs.quiet(args)
    workdir = args.workdir or Path("runs") / str(config.get("name") or Path(args.config.partition(":")[0]).stem)
    if args.dry_run:
        from giraffe_jax.lab.estimate import estimate

        found = estimate(config, workdir, lambda line: print(line, file=sys.stderr, flush=True), keep=args.keep)
        print(f"{config.name}, in {workdir}: {found}")
        return 0
    return 1 if run(config, workdir, keep=args.keep).failures else 0
