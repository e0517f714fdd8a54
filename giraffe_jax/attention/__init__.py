"""Attention: `attend`, one function for every backend; positions are already in the rotated queries and keys."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from giraffe_jax.attention.blockwise import Place, blockwise, index_in_document, place_of_rows
from giraffe_jax.attention.dense import dense
from giraffe_jax.positions import CAUSAL, Band

Implementation = Literal["auto", "dense", "blockwise"]

DENSE_UP_TO = 256  # tokens; on a CPU blocks train as fast there, and 2.6 times as fast at 1,024 (LOG.md)

__all__ = ["Implementation", "Place", "attend", "blockwise", "dense", "index_in_document", "place_of_rows"]


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
    local: tuple | None = None,
    implementation: Implementation = "auto",
    block_size: int | None = None,
) -> Float[Array, "B T N H"]:
    """Returns causal attention with grouped heads: query head n reads key head n // (N / K).

    Args:
      q, k: rotated queries and keys, one of each per band.
      v: values.
      segments: document of each token where queries and keys are the same tokens; other documents are not attended to.
      q_index: index of each query among the keys, for a key-value cache; None where queries and keys are the same
        tokens.
      bands: which band holds for a pair of tokens, by their indices in their document; see positions.Band.
      bias: additive logit bias of positions.Encoding, or None.
      length: sequence length for the bands' masks.
      local: (window, chunk): further, keys less than `window` tokens back and of the query's chunk of `chunk` tokens.
      implementation: "dense" (the reference), "blockwise" (O(T) memory), or "auto": dense for caches and short rows.
      block_size: tokens of a block of keys in "blockwise"; None leaves it to the backend.
    """
    if q_index is None and (implementation == "blockwise" or (implementation == "auto" and v.shape[1] > DENSE_UP_TO)):
        place = place_of_rows(segments, (v.shape[0], v.shape[1]))
        settings: dict[str, Any] = dict(bands=bands, bias=bias, length=length, local=local, block_size=block_size)
        return blockwise(q, k, v, q_place=place, k_place=place, **settings)
    k_index = jnp.arange(v.shape[1])[None]
    within = k_index if segments is None else index_in_document(segments)
    return dense(
        q,
        k,
        v,
        q_index=k_index if q_index is None else q_index,
        k_index=k_index,
        within=(within if q_index is None else q_index, within),
        segments=None if segments is None else (segments, segments),
        bands=bands,
        bias=bias,
        length=length,
        local=local,
    )
