"""The compiled program of a run: its training step, its static arguments, and the shapes and shardings of the others.

`train` calls it and `giraffe plan` compiles it for a topology that is not attached, so the plan is of what is run.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax import sharding
from giraffe_jax.loading import state_axes
from giraffe_jax.model import ModelConfig, init_params, lora
from giraffe_jax.positions import Encoding
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.step import TrainState, Update, init_state, make_update, train_step

BATCH = dict(tokens=jnp.int32, targets=jnp.int32, weights=jnp.float32, positions=jnp.float32, segments=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step with all of its arguments but the state and the batch.

    `model.positions` is empty: the bound positions are in `encoding`.
    """

    config: TrainConfig
    model: ModelConfig
    mesh: jax.sharding.Mesh
    encoding: Encoding
    update: Update
    z_loss: float
    settings: Mapping[str, Any]  # static arguments of the step

    def step(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """Returns what `train_step` does, under the current mesh."""
        return train_step(state, batch, self.encoding, self.update, z_loss=self.z_loss, **self.settings)

    def lower(self, state: TrainState) -> jax.stages.Lowered:
        """Returns the step lowered for the mesh's devices, whether they are attached or not.

        Args:
          state: arrays, or their shapes from `state_shapes`.
        """
        with jax.set_mesh(self.mesh):
            batch = batch_shapes(self.config, self.mesh)
            return train_step.lower(state, batch, self.encoding, self.update, z_loss=self.z_loss, **self.settings)


def program(config: TrainConfig, model: ModelConfig, mesh: jax.sharding.Mesh) -> Program:
    """Returns the program of a run; `model` is the complete config, the source's with the changes of config.model."""
    plain = dataclasses.replace(model, positions=())
    settings = dict(model=plain, accumulate=config.accumulate, chunk=config.loss_chunk)
    update = make_update(config.optim, config.steps, config.lora, config.frequencies)
    return Program(config, plain, mesh, model.bind(), update, config.z_loss, settings)


def start(config: TrainConfig, model: ModelConfig, params: Any) -> TrainState:
    """Returns the state before the first step, adding LoRA adapters and log_ratio to the model's parameters if the
    config trains them."""
    if config.lora is not None:
        params = lora.add(params, config.lora, jax.random.key(config.seed))
    if config.frequencies is not None:
        params = params | {"positions": {"log_ratio": jnp.zeros(model.head_dim // 2)}}
    return init_state(params, config)


def state_shapes(config: TrainConfig, model: ModelConfig, mesh: jax.sharding.Mesh, params: Any = None) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state.

    Args:
      params: the parameters that the run starts from, arrays or shapes; None is those of a new model.

    Raises:
      ConfigError: a dimension that its mesh axis does not divide.
    """
    if params is None:
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    shapes = jax.eval_shape(lambda params: start(config, model, params), params)
    where = sharding.shardings(shapes, state_axes(model), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def batch_shapes(config: TrainConfig, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes [B T] of a batch, by name, and their shardings."""
    shape, where = (config.data.batch_size, config.data.seq_len), sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in BATCH.items()}


def bytes_per_device(shapes: Any) -> int:
    """Returns the bytes that one device holds of a tree of arrays, by their shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
