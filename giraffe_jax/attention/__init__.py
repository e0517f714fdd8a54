"""Attention: `attend_rows` over whole rows, by the fastest kernel available; `attend` of any queries to any keys.

Queries and keys are passed in already rotated.
"""

from typing import Any, Literal

from jaxtyping import Array, Float

from giraffe_jax.attention.blockwise import blockwise
from giraffe_jax.attention.dense import dense
from giraffe_jax.attention.engine import DENSE_UP_TO, Implementation, Kernel, attend_rows, choose
from giraffe_jax.attention.places import Place, place_of_rows
from giraffe_jax.attention.ring import merge
from giraffe_jax.positions import Band

__all__ = [
    "Implementation", "Kernel", "Place", "attend", "attend_rows", "blockwise", "choose", "dense", "merge",
    "place_of_rows",
]  # fmt: skip


def attend(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    *,
    q_place: Place,
    k_place: Place,
    bands: tuple[Band, ...] = (),
    bias=None,
    implementation: Literal["auto", "dense", "blockwise"] = "auto",
    block_size: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns causal grouped-query attention, and the log-sum-exp of its logits.

    Query head n reads key head n // (N / K). A query that sees no key gets output 0 and log-sum-exp MASKED. `merge`
    needs the log-sum-exp to combine attention over disjoint sets of keys.

    Args:
      q, k: rotated queries and keys, one of each per band.
      v: values.
      q_place, k_place: index, segment and document start of each query and key; a query sees the keys of its segment
        with an index up to its own. They may be different tokens, in any order.
      bands: which of q and k apply to a pair, by its indices in the document, with the limits of one layer; empty: one
        q and k for all pairs.
      bias: additive logit bias of positions.Encoding, or None.
      implementation: "dense" (the reference), "blockwise" (O(T) memory), or "auto": dense for few queries.
      block_size: tokens of a block of keys in "blockwise"; None is 256.
    """
    arguments: dict[str, Any] = dict(q_place=q_place, k_place=k_place, bands=bands, bias=bias)
    if implementation == "blockwise" or (implementation == "auto" and q[0].shape[1] > DENSE_UP_TO):
        return blockwise(q, k, v, **arguments, block_size=block_size)
    return dense(q, k, v, **arguments)
