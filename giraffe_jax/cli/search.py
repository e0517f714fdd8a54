"""Search for the frequencies that carry a model furthest, without training it: LongRoPE's evolution, or LongRoPE2's.

  giraffe search --config=experiments/learned/config.py:text,4 --workdir=runs/searched
  giraffe search --config=FILE --config.recipe=longrope2 --workdir=runs/searched2

LongRoPE2's recipe searches slow planes alone, between 1 and 2 times the factor, and which plane is the first of them;
faster planes follow NTK's formula. It is meant for an objective of answers alone: synthetic documents whose other
tokens have no weight.

The workdir gets search.jsonl, a row per generation, and positions.json, the best table so far as an entry that any
config takes and that exports. The same command with the same workdir goes on after the last whole generation.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    configs.config_arguments(parser)
    configs.workdir_argument(parser, "where the search lives")
    parser.add_argument("--quiet", action="store_true", help="no progress, no line with the result")


def run(args: argparse.Namespace) -> int:
    config = configs.load(args)
    from giraffe_jax.lab.search import search

    search(config, args.workdir, quiet=args.quiet)
    return 0
