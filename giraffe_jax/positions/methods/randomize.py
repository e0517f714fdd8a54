"""Randomised positions while training: random steps (Giraffe), or a sorted random subset (Ruoss et al.).

Giraffe: arXiv:2308.10882, abacusai/Long-Context `random_init_forward`. Subsets: Ruoss et al., "Randomized Positional
Encodings Boost Length Generalization of Transformers", arXiv:2305.16843. Evaluation always reads plain positions.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(kind="steps")
IDENTITY = "short"
NEEDS = ("positions", "key")
ABOUT = dict(kind="training", training_free=False, export="weights only", cache="rotated")


def randomize(
    e: Encoding, *, kind: Literal["steps", "subset"] = "steps", max_len: Annotated[int, Bound(1)] | None = None
) -> Encoding:
    """Training positions drawn anew for every step; without a key (evaluation) nothing changes.

    Args:
      kind: "steps" makes position t the sum of t + 1 draws from U(0, 2), shrunk where a document of n tokens would end
        beyond n; each document has its own. "subset" gives token t the t-th smallest of T distinct integers below
        max_len, the same for the whole batch.
      max_len: the largest position that a subset may name, plus one.
    """
    if kind == "subset" and max_len is None:
        raise ValueError("kind='subset' needs max_len.")
    if e.key is None:
        return e
    num_tokens = e.positions.shape[-1]
    if kind == "steps":
        steps_BT = jax.random.uniform(e.key, e.positions.shape, jnp.float32, 0.0, 2.0)
        return e.replace(positions=jax.vmap(_walk)(e.positions, steps_BT))
    if max_len < num_tokens:  # type: ignore[operator]
        raise ValueError(f"randomize: max_len {max_len} is less than the {num_tokens} tokens of a row.")
    subset_T = jnp.sort(jax.random.choice(e.key, max_len, (num_tokens,), replace=False))  # type: ignore[arg-type]
    return e.replace(positions=subset_T.astype(jnp.float32)[e.positions.astype(jnp.int32)])


def _walk(positions_T, steps_T):
    """Returns cumulative steps within each document, none ending beyond its number of tokens."""
    num_tokens = positions_T.shape[0]
    document_T = jnp.cumsum(positions_T == 0)
    total_T = jnp.cumsum(steps_T)
    before_T = jax.ops.segment_min(total_T - steps_T, document_T, num_tokens + 1)[document_T]
    walked_T = total_T - before_T
    end_T = jax.ops.segment_max(walked_T, document_T, num_tokens + 1)[document_T]
    size_T = jax.ops.segment_sum(jnp.ones(num_tokens), document_T, num_tokens + 1)[document_T]
    return walked_T * size_T / jnp.maximum(end_T, size_T)
