"""Train a model as a config file says.

  giraffe train --config=configs/llama2_7b_32k_tpu.py --config.steps=1000 --workdir=runs/llama2

A new workdir gets config.json, metrics.jsonl, tensorboard/ and checkpoints/. The same command with the same workdir
continues from its last undamaged checkpoint, bit for bit as if it had never stopped. What decides numbers must be
what it was; mesh, remat, attention, chunks, caches, saving, keeping and evaluation may differ, and there may be more
steps where no step that is done would have had another learning rate (schedule "constant", or decay_steps with the
descent not begun).

--dry-run checks every key and says what the run would be and its memory on the devices here, and writes nothing. It
needs no weights, tokenizer or text: of a source its config.json is enough, or --model names a shape. `giraffe plan`
says it of TPUs that are not here.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    configs.config_arguments(parser)
    configs.workdir_argument(parser, "where the run lives", required=False)
    parser.add_argument("--dry-run", action="store_true", help="check the config, say the memory, and write nothing")
    configs.shape_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
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
