"""Search for the frequencies that extend a model furthest, without training, by the evolution of LongRoPE or LongRoPE2.

  giraffe search --config=experiments/learned/config.py:text,4 --workdir=runs/searched
  giraffe search --config=FILE --config.recipe=longrope2 --workdir=runs/searched2

LongRoPE2's recipe searches only the slow planes, with scales between 1 and 2 times the factor, and which plane is the
first slow one; faster planes follow the NTK formula. It is meant for a loss on answer tokens only: synthetic documents
in which all other tokens have weight 0.

The workdir gets search.jsonl, with a row per generation, and positions.json: the best table so far, as an entry for
`positions` of any config, which can also be exported. The same command with the same workdir resumes after the last
complete generation.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe search`."""
    configs.config_arguments(parser)
    configs.workdir_argument(parser, "folder of the search's results and state")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no result")


def run(args: argparse.Namespace) -> int:
    """Runs or resumes the search; returns 0."""
    config = configs.load(args)
    from giraffe_jax.lab.search import search

    search(config, args.workdir, quiet=args.quiet)
    return 0
