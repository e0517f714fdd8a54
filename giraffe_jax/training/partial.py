"""Partial checkpoints: a run that trains only a part of its source's parameters saves that part, and where the rest is
(base.py)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from giraffe_jax import base, checkpoint, sharding
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.step import TrainState, trainable


def beneath(config: TrainConfig, workdir: str | Path) -> base.Base | None:
    """Returns the base that has a run's frozen weights: that of its last good checkpoint, else config.source. None if
    the run saves all weights.

    Raises:
      ConfigError: the base is gone, or has other weights than when the run began.
    """
    alone = config.frequencies is not None and config.frequencies.train == "alone"
    if not config.source or not (config.lora is not None or alone):
        return None
    if checkpoint.is_workdir(workdir):
        with checkpoint.manager(workdir) as checkpoints:
            step = checkpoint.latest_good(checkpoints, lambda line: None)  # the loop reports damaged ones
            if step is not None:
                return base.saved(checkpoint.read_about(checkpoints, step), workdir)
    return base.of(config.source, config.base)


def left_out(config: TrainConfig, params: Any, under: base.Base | None) -> frozenset[str]:
    """Returns the paths of the parameters that the run's checkpoints do not hold."""
    if under is None:
        return frozenset()
    return base.left_out(params, trainable(params, config.lora, config.frequencies))


def to_save(state: TrainState, omitted: frozenset[str]) -> TrainState:
    """Returns the state as checkpoints hold it, without the parameters at the paths `omitted`."""
    return dataclasses.replace(state, params=base.without(state.params, omitted)) if omitted else state


def restore(checkpoints: checkpoint.Checkpoints, step: int, state: TrainState, omitted: frozenset[str]) -> TrainState:
    """Returns the state of a checkpoint, with the parameters at the paths `omitted` taken from `state`. All other
    arrays of `state` are deleted."""
    held = to_save(state, omitted)
    frozen = base.without(state.params, frozenset(sharding.paths(state.params).keys() - omitted))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), held)
    for x in jax.tree.leaves(held):  # frees their memory for what is restored in their place
        x.delete()
    restored = checkpoint.restore(checkpoints, step, abstract)
    return dataclasses.replace(restored, params=base.joined(restored.params, frozen)) if omitted else restored
