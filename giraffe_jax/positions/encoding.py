"""Encoding: everything a forward pass knows about position, in one record."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Band:
    """One range of query-key pairs and the positions that its rotation uses.

    mask(i, j, length) -> bool: whether the pair belongs to the band. i and j are token indices (int32), never
    positions;
      causality and document boundaries are applied on top, so a mask says only what is special about the band.
    q_pos(positions, length), k_pos(positions, length) -> float32: the positions to rotate queries and keys by.

    The masks of an Encoding's bands must be disjoint. A pair that no band covers is not attended to.
    """

    mask: Callable[[Any, Any, Any], Any]
    q_pos: Callable[[Any, Any], Any]
    k_pos: Callable[[Any, Any], Any]


def _everything(i, j, length):
    del length
    return (i >= j) | (i < j)


def _unchanged(positions, length):
    del length
    return positions


CAUSAL = Band(mask=_everything, q_pos=_unchanged, k_pos=_unchanged)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoding:
    """What attention needs to know about positions. Axes: B batch, T tokens, R rotary planes, L layers.

    Arrays are arguments of the compiled step, so encodings that differ only in numbers share one compilation. On the
    host, while methods are bound, they are float64 numpy; inside a step they are float32.
    """

    inv_freq: Any  # [R] or [L R], radians per token of each rotary plane
    gain: Any  # [], multiplies cos and sin, so logits get its square
    theta: Any  # [], RoPE base
    original_len: Any  # [], pretraining context, tokens
    positions: Any = None  # [B T], tokens since the document's start; never used for masking
    length: Any = None  # [], current sequence length, tokens: what length-dependent methods read
    log_decay: Any = None  # [R], xPos: queries get exp(+p log_decay), keys exp(-p log_decay)
    query_scale: Any = None  # [B T] or [L B T], multiplies queries
    key: Any = None  # PRNG key while training; None elsewhere
    pending: tuple = ()  # calls that need positions, length or key, in order
    bands: tuple[Band, ...] = dataclasses.field(default=(CAUSAL,), metadata={"static": True})
    bias: Callable | None = dataclasses.field(default=None, metadata={"static": True})
    # bias(i, j, num_heads) -> [N, T, S], evaluated block by block on token indices

    @property
    def head_dim(self) -> int:
        return 2 * self.inv_freq.shape[-1]

    @property
    def xp(self):
        """numpy while binding on the host, jax.numpy inside a step: methods written with it serve both."""
        return jnp if isinstance(self.inv_freq, jax.Array) else np

    @property
    def planes(self):
        """Index of each rotary plane, [R]; plane 0 is the fastest."""
        return self.xp.arange(self.inv_freq.shape[-1], dtype=self.inv_freq.dtype)

    def replace(self, **changes) -> "Encoding":
        return dataclasses.replace(self, **changes)

    def at(self, positions, *, length=None, key=None) -> "Encoding":
        """Returns the encoding of these positions, with every pending method applied.

        Args:
          positions: [B T], tokens since the document's start.
          length: current sequence length in tokens; by default the one given when binding, else max(positions) + 1.
          key: PRNG key of a training step; None turns training-time methods off.
        """
        e = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.replace(pending=(), key=None))
        positions = jnp.asarray(positions, jnp.float32)
        if length is None:
            length = jnp.max(positions) + 1 if self.length is None else self.length
        e = e.replace(positions=positions, length=jnp.asarray(length, jnp.float32), key=key)
        for i, call in enumerate(self.pending):
            e = call(e if key is None else e.replace(key=jax.random.fold_in(key, i)))
        return e.replace(key=None)
