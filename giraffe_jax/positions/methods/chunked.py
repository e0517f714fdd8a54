"""Chunked attention: tokens see the earlier tokens of their own chunk, in all layers or in all but every n-th.

Llama 4 (transformers' `attention_chunk_size` 8192, full attention without rotation in every fourth layer); no arXiv
paper of its own.
"""

from typing import Annotated

import jax

from giraffe_jax.positions.calls import Bound, Extent
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.layers import alternate

EXAMPLE = dict(chunk_size=16.0)
IDENTITY = dict(chunk_size=float("inf"))
ABOUT = dict(
    kind="mask",
    training_free=True,
    export="custom",
    cache="rotated",
    test="masks",
    instead="Llama 4's attention_chunk_size, in another class",
)


def chunked(e: Encoding, *, chunk_size: Extent = 8192.0, full_every: Annotated[int, Bound(0)] = 0) -> Encoding:
    """Query i sees key j if i // chunk_size == j // chunk_size; in a list twice, if this holds for both sizes.

    Args:
      chunk_size: tokens.
      full_every: every n-th layer attends fully; 0 for none.
    """
    chunk_size = alternate(e, full_every, chunk_size, e.xp.inf)
    # Chunks of 24 and of 40 do not combine to chunks of one size: tokens are separated where either kind starts.
    return e.replace(chunk=chunk_size if e.chunk is None else (*jax.tree.leaves(e.chunk), chunk_size))
