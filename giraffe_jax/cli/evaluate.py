"""Evaluate one model on tasks x lengths: writes one row per example to results.jsonl, and the report.

  giraffe evaluate --config=configs/evaluation.py:giraffe-mini --workdir=runs/mini-measured
  giraffe evaluate --config=configs/evaluation.py:runs/llama2 --workdir=runs/llama2-measured

The config has `source` and `tasks`, and may have `positions` (default: those the model was trained with), `name`,
`model` and the other keys of an experiment. To compare several variants, write an experiment: `giraffe run`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe evaluate`."""
    configs.config_arguments(parser)
    configs.keep_argument(parser)
    configs.workdir_argument(parser, "where results go")


def run(args: argparse.Namespace) -> int:
    """Evaluates the model and writes the report; returns 1 if any part failed, else 0."""
    config = configs.load(args)
    from giraffe_jax.config import ConfigError
    from giraffe_jax.lab import run as lab_run

    try:
        return 1 if lab_run.run(as_experiment(config), args.workdir, keep=args.keep).failures else 0
    except ConfigError as error:  # the user's config has no variants
        raise ConfigError(str(error).replace("config.variants[0].positions", "config.positions")) from error


def as_experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of an experiment whose one variant evaluates the config's source.

    Raises:
      ConfigError: the config has variants, or no source.
    """
    from giraffe_jax.config import ConfigError

    values = {key: config[key] for key in config}
    if "variants" in values:
        raise ConfigError("config.variants: this is an experiment's config; `giraffe run` measures its variants.")
    if "source" not in values:
        raise ConfigError("config: missing ['source']: the model to measure.")
    source, scaling, base = str(values["source"]), values.pop("positions", None), values.get("base")
    variant = {"name": Path(source).name, "positions": own_positions(source, base) if scaling is None else scaling}
    return {"name": variant["name"]} | values | {"variants": [variant]}


def own_positions(source: str, base: str | None = None) -> Any:
    """Returns the position methods a source's own config names, without reading its weights."""
    from giraffe_jax import checkpoint
    from giraffe_jax.hf import read_config

    where, which = checkpoint.split_source(source)
    if checkpoint.is_workdir(where):
        with checkpoint.manager(where) as checkpoints:
            step = checkpoint.find_step(checkpoints, which)
            return checkpoint.read_about(checkpoints, step)["model"]["positions"]
    return read_config(source, base).positions
