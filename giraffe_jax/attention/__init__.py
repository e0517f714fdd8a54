"""Attention: `attend`, one function for every backend; positions are already in the rotated queries and keys."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from giraffe_jax.attention.blockwise import blockwise
from giraffe_jax.attention.dense import dense
from giraffe_jax.positions import CAUSAL, Band

Implementation = Literal["auto", "dense", "blockwise"]

DENSE_UP_TO = 1024  # tokens; below, one logits tensor is small and its single matrix product faster than blocks

__all__ = ["Implementation", "attend", "blockwise", "dense"]


def attend(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    *,
    segments: Int[Array, "B T"] | None = None,
    q_index: Int[Array, "#B T"] | None = None,
    bands: tuple[Band, ...] = (CAUSAL,),
    bias=None,
    length=None,
    implementation: Implementation = "auto",
    block_size: int = 512,
) -> Float[Array, "B T N H"]:
    """Returns causal attention with grouped heads: query head n reads key head n // (N / K).

    Args:
      q, k: rotated queries and keys, one of each per band.
      v: values.
      segments: document of each token where queries and keys are the same tokens; other documents are not attended to.
      q_index: index of each query among the keys, for a key-value cache; None where queries and keys are the same
      tokens. bands: which band holds for a pair of token indices; see positions.Band.
      bias: additive logit bias, (i, j, num_heads) -> [N, T, S], or None.
      length: sequence length for the bands' masks.
      implementation: "dense" (the reference), "blockwise" (O(T) memory), or "auto": dense for caches and short rows.
      block_size: tokens of a block in "blockwise".
    """
    if q_index is None and (implementation == "blockwise" or (implementation == "auto" and v.shape[1] > DENSE_UP_TO)):
        return blockwise(q, k, v, segments=segments, bands=bands, bias=bias, length=length, block_size=block_size)
    k_index = jnp.arange(v.shape[1])[None]
    return dense(
        q,
        k,
        v,
        q_index=k_index if q_index is None else q_index,
        k_index=k_index,
        segments=None if segments is None else (segments, segments),
        bands=bands,
        bias=bias,
        length=length,
    )
