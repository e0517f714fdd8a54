"""The KV cache."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from giraffe_jax.model.config import ModelConfig


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("k", "v", "index", "positions"), meta_fields=("raw", "filled")
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values so far; `raw` caches hold unrotated keys, for methods whose rotation changes with the length."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    index: Int[Array, "B"]  # number of filled slots in each row, and so the slot of its next token
    positions: Float[Array, "B S"]  # of the cached keys; raw caches rotate by them
    raw: bool = False
    filled: bool = False  # after prefill: from then on tokens are added one at a time

    @classmethod
    def init(cls, config: ModelConfig, batch: int, capacity: int, dtype: Any = None, raw: bool = False) -> "Cache":
        """Returns an empty cache of `capacity` tokens for each of `batch` rows."""
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, dtype or config.dtype)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32), jnp.zeros((batch, capacity)), raw)
