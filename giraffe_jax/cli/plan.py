"""Plan training on TPUs or GPUs that you don't have: whether it fits, what a step does, its time and its price.

  pip install "giraffe-jax[plan]"
  giraffe plan --config=configs/llama2_7b_32k_tpu.py --model=llama2_7b --topology=v5p:4x4x4 --price=4.20
  giraffe plan --config=experiments/giraffe/config.py:W,T.jsonl --variant="scale 4" --model=llama_13b \\
      --topology=v5p:2x2x2
  pip install "giraffe-jax[plan-gpu]"
  giraffe plan --config=F --topology=h100:4x8

Compiles the same step that `giraffe train` would run, without running it, on a mesh of all chips of the topology:
minutes of CPU for a model of billions of parameters. Weights, tokenizer and text are not needed: the source's
config.json is enough, or --model names a shape. Chips: v4, v5e, v5p, v6e, tpu7x (each of its two cores is a device);
GPUs, as NODESxGPUS_PER_NODE: a100 (80 GB), h100, h200. Exit status 1 means that it does not fit; then up to --tries
other configs are compiled, and those that fit are printed as flags to append. --longest looks for the longest rows that
fit. Each try takes as long as the plan itself.

Per device and step:
  peak             peak memory: arguments (parameters, optimizer state, batch) and activations
  in the host's    host memory, used by remat "offload", "offload_residual" and "offload_attention"
  model FLOPs      (4 N + 2 trained) x tokens + 12 x layers x heads x head_dim x pairs of tokens that attention
                   sees. That is 6 N x tokens if all N parameters are trained; tokens^2 / 2 pairs per row, fewer
                   with --document
  executed FLOPs   matmuls of the compiled program, two FLOPs per multiply-add, times the iterations of their loops;
                   loops whose length depends on the data are counted for full rows of one document, or of --document
  collectives      bytes of operands, times iterations, by the mesh axes along which devices exchange them
  at least ... s   lower bound, the largest of three: matmuls at the bfloat16 peak; arguments and results moved once
                   through memory; bytes sent over all of a chip's links, and between GPU nodes over their network
                   (the slower network between slices of TPUs is not counted)
"""

import argparse
import dataclasses
import json
import os
from typing import Any

from giraffe_jax.cli import configs, plan_tries

# JAX and libtpu need these before they are initialised, to compile without a TPU.
ENVIRONMENT = dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5p-8",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe plan`."""
    configs.config_arguments(parser, several=False)
    configs.shape_argument(parser)
    parser.add_argument("--topology", required=True, metavar="KIND:AxB[xC]", help="v5p:4x4x4, h100:4x8, ...")
    slices = "number of TPU slices of this topology, joined by the data centre's network (1)"
    parser.add_argument("--slices", type=configs.number(int, 1, high=1024), default=1, metavar="N", help=slices)
    parser.add_argument("--variant", metavar="NAME", help="which variant of an experiment's config to plan")
    document = "tokens per document; several fill a row (default: a row is one document)"
    parser.add_argument("--document", type=configs.number(int, 1, high=2**31 - 1), metavar="TOKENS", help=document)
    price = "dollars per chip-hour; prints the least that the whole run costs"
    parser.add_argument("--price", type=configs.number(float, 0.0), metavar="DOLLARS", help=price)
    longest = "find the longest rows that fit, in multiples of 1,024 tokens, keeping the tokens per step where possible"
    parser.add_argument("--longest", action="store_true", help=longest)
    tries = "compile at most N other configs if it does not fit, and N more for --longest (8); 0 for none"
    parser.add_argument("--tries", type=configs.number(int, 0, high=64), default=8, metavar="N", help=tries)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")


def run(args: argparse.Namespace) -> int:
    """Prints the plan; returns 0 if the training fits, else 1."""
    os.environ |= ENVIRONMENT
    values, variant = _training(configs.read(args), args.variant)
    from giraffe_jax import plan
    from giraffe_jax.training.dry import check_config

    config, model, missing = check_config(values, configs.shape(args))
    say = (lambda text: None) if args.json else print
    result = plan.plan(config, model, args.topology, slices=args.slices, document=args.document, say=say)
    for line in missing:
        say(f"not checked: {line}")
    say(plan.text(result, config, args.price))
    row = dataclasses.asdict(result)
    if args.price is not None:
        row["dollars"] = None if result.chip_hours is None else result.chip_hours * args.price
    others = plan_tries.Others(args, variant, result, say)
    if args.tries and not result.fits:
        row |= others.proposals(config, model)
    if args.longest:
        row["longest"] = others.longest(config)
    if args.json:
        print(json.dumps(row))
    return 0 if result.fits else 1


def _training(values: Any, variant: str | None) -> tuple[Any, int | None]:
    """Returns the training config, and the index of its variant if `values` are an experiment's (else None)."""
    from giraffe_jax.config import ConfigError, build, nearest

    if "variants" not in values:
        if "tasks" in values:
            raise ConfigError("config.tasks: `giraffe plan` takes a training's config, or an experiment's.")
        if variant is not None:
            raise ConfigError("--variant: the config is of one training, not of an experiment.")
        return values, None
    from giraffe_jax.lab import spec

    experiment = build(spec.ExperimentConfig, values)
    trainings = spec.trainings(experiment)
    if variant not in trainings:
        hint = "" if variant is None else nearest(variant, list(trainings))
        known = ", ".join(map(repr, trainings)) or "none"
        raise ConfigError(f"--variant: got {variant!r}; trained variants: {known}.{hint}")
    return trainings[variant], [v.name for v in experiment.variants].index(variant)
