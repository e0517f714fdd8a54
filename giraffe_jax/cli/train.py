"""Train a model as a config file says.

  giraffe train --config=configs/llama2_7b_32k_tpu.py --config.steps=1000 --workdir=runs/llama2

A new workdir gets config.json, metrics.jsonl, tensorboard/ and checkpoints/. The same command with the same workdir
continues from its last undamaged checkpoint, bit for bit as if it had never stopped. What decides numbers must be
what it was; mesh, remat, attention, chunks, caches, saving, keeping and evaluation may differ, and there may be more
steps where no step that is done would have had another learning rate (schedule "constant", or decay_steps with the
descent not begun).
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    configs.config_arguments(parser)
    configs.workdir_argument(parser, "where the run lives")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    config = configs.load(args)
    from giraffe_jax.training.loop import train

    configs.quiet(args)
    train(config, args.workdir, quiet=args.quiet)
    return 0
