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
    """Keys and values so far; `raw` caches hold unrotated keys, for methods whose rotation changes as they grow."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    index: Int[Array, "B"]  # slots filled in each row; a row's next token goes there
    positions: Float[Array, "B S"]  # of the cached keys, which raw caches rotate by
    raw: bool = False
    filled: bool = False  # whether anything has been read into it: from then on one token at a time goes in

    @classmethod
    def init(cls, config: ModelConfig, batch: int, capacity: int, dtype: Any = None, raw: bool = False) -> "Cache":
        """Returns an empty cache of `capacity` tokens for each of `batch` rows."""
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, dtype or config.dtype)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32), jnp.zeros((batch, capacity)), raw)
