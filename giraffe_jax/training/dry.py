"""Checks a training config without reading weights or documents: every key, and the memory that the run takes.

Of the model that training starts from only config.json is read. Data sources that select documents by length or hold
conversations are tokenised, to report what is selected; nothing is written but their tokens, into the token cache.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from giraffe_jax import checkpoint, hf, sharding
from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import dry
from giraffe_jax.loading import TOKENIZER, read_model
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import load_tokenizer
from giraffe_jax.training import header
from giraffe_jax.training.config import TrainConfig, check
from giraffe_jax.training.program import bytes_per_device, program, state_shapes

_NEEDED = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING]


class Checked(NamedTuple):
    """A config that passed all checks that are possible with the files on this machine."""

    config: TrainConfig
    model: ModelConfig
    missing: tuple[str, ...]  # one line for each thing that is not here and so was not checked


def check_config(config: TrainConfig | Any, shape: Mapping[str, Any] | None = None) -> Checked:
    """Returns the config and the model that it trains.

    Args:
      config: TrainConfig or the ConfigDict of a config file.
      shape: keys of ModelConfig, for a source that is not here; config.model overrides them.

    Raises:
      ConfigError: what `train` would reject without reading weights or documents or making a mesh; or the model is
        defined by neither the source nor config.model nor `shape`.
    """
    config = build(TrainConfig, config)
    model, missing = _model(config, shape)
    tokenizer = None
    path = _tokenizer(config)
    if path is None:
        missing.append("config.tokenizer: none is named, and none is with the source.")
    elif not Path(path).exists():
        missing.append(f"config.tokenizer: {path} is not here.")
    else:
        tokenizer = load_tokenizer(path)
        if tokenizer.vocab_size > model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}."
            )
    missing += dry.dry_run(config.data, tokenizer, "data")
    if config.eval_data is not None:
        missing += dry.dry_run(config.eval_data, tokenizer, "eval_data")
    return Checked(config, model, tuple(missing))


def _model(config: TrainConfig, shape: Mapping[str, Any] | None) -> tuple[ModelConfig, list[str]]:
    if shape is not None:
        named = [] if not config.source else [f"config.source: {config.source} was not read; a shape stands for it."]
        return build(ModelConfig, {**shape, **config.model}, "model"), named
    if not config.source:
        return build(ModelConfig, config.model, "model"), []
    try:
        return read_model(config.source, config.model, base=config.base), []
    except FileNotFoundError as error:
        if all(key in config.model for key in _NEEDED):
            return build(ModelConfig, config.model, "model"), [f"config.source: {config.source} is not here."]
        raise ConfigError(
            f"config.source: {str(error).rstrip('.')}. A folder with its config.json is enough to check a config, and "
            "so is --model=NAME, a shape of configs/models.py."
        ) from None


def _tokenizer(config: TrainConfig) -> str | None:
    """Returns the path of the tokenizer that a run would read, whether it exists or not; None if none is named."""
    if config.tokenizer:
        return config.tokenizer
    if not config.source:
        return None
    where, _ = checkpoint.split_source(config.source)
    beside = Path(where) / TOKENIZER
    if beside.is_dir():
        return str(beside)
    try:
        place = hf.locate(where)  # of a packaged model its directory
    except (FileNotFoundError, ConfigError):
        return None
    present = place.is_file() or any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return str(place) if present else None


def dry_run(
    config: TrainConfig | Any,
    workdir: str | None = None,
    shape: Mapping[str, Any] | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Reports, through `say`, what a run would be on the devices of this machine: its header, and memory per device.

    Args:
      config, shape: as in `check_config`.
      workdir: only named in the header; neither read nor written.

    Raises:
      ConfigError: what `check_config` rejects, or a mesh that does not fit these devices.
    """
    config, model, missing = check_config(config, shape)
    try:
        mesh = sharding.make_mesh(config.mesh)
    except ConfigError as error:
        raise ConfigError(f"{error} `giraffe plan --topology=...` checks it for other devices.") from None
    check(config, model, mesh)
    state = state_shapes(config, model, mesh)
    say(header.header(config, model, state.params, mesh, workdir or "steps", 0))
    path = _tokenizer(config)
    if path is not None and Path(path).exists():
        tokenizer = load_tokenizer(path)
        for name, data in (("data", config.data), ("eval_data", config.eval_data)):
            for line in [] if data is None else dry.described(data, tokenizer, name):
                say(line)
    for line in missing:
        say(f"not checked: {line}")
    parameters, optimizer = bytes_per_device(state.params), bytes_per_device(state.opt_state)
    summary = f"memory a device: parameters {gib(parameters)}, optimizer {gib(optimizer)}"
    try:
        memory = program(config, model, mesh).lower(state).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        summary += f"; the step does not fit: {str(error).splitlines()[0]}"
        memory = None
    if memory is not None:
        peak = memory.peak_memory_in_bytes
        if mesh.devices.flat[0].platform == "cpu":  # XLA's peak for CPUs leaves out temporaries
            peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            peak += memory.temp_size_in_bytes
        summary += f", arguments {gib(memory.argument_size_in_bytes)}, at the peak {gib(peak)}"
    say(summary)


def gib(size: float) -> str:
    """Returns a number of bytes as text: "1.23 GiB", or in a smaller unit below half a GiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale / 2:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,.0f} bytes"
