"""Train the model that a config file describes.

  giraffe train --config=configs/llama2_7b_32k_tpu.py --config.steps=1000 --workdir=runs/llama2

A new workdir gets config.json, metrics.jsonl, tensorboard/ and checkpoints/. The same command with the same workdir
resumes from its last undamaged checkpoint, bit for bit as if it had never stopped. Settings that affect results must
match; mesh, remat, attention, chunks, caches, saving, keeping and evaluation may change. More steps are allowed if they
do not change the learning rate of any finished step (schedule "constant", or decay_steps with the decay not begun).

--dry-run checks every key, prints a summary of the run and its memory on this machine's devices, and writes nothing. It
needs no weights, tokenizer or text: the source's config.json is enough, or --model names a shape. `giraffe plan` does
the same for TPUs and GPUs that you don't have.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe train`."""
    configs.config_arguments(parser)
    configs.workdir_argument(parser, "folder of the run's checkpoints and metrics", required=False)
    parser.add_argument("--dry-run", action="store_true", help="check the config, print the memory, and write nothing")
    configs.shape_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Trains, resumes or checks the run; returns 0."""
    from giraffe_jax.config import ConfigError

    if args.workdir is None and not args.dry_run:
        raise ConfigError("--workdir: missing; only --dry-run needs none. See `giraffe train --help`.")
    if args.model is not None and not args.dry_run:
        raise ConfigError("--model: only --dry-run takes it; a run's weights come with their shape, or config.model.")
    config = configs.load(args)
    configs.quiet(args)
    if args.dry_run:
        from giraffe_jax.training.dry import dry_run

        dry_run(config, args.workdir, configs.shape(args))
        return 0
    from giraffe_jax.training.loop import train

    train(config, str(args.workdir), quiet=args.quiet)
    return 0
