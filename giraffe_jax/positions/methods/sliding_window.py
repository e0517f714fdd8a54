"""Sliding window attention: only the latest tokens are seen, in all layers or in all but every n-th.

Mistral 7B, arXiv:2310.06825; Gemma 3, arXiv:2503.19786 (five windowed layers to each full one).
"""

from typing import Annotated

from giraffe_jax.positions.calls import Bound, Extent
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.layers import alternate

EXAMPLE = dict(window=16.0)
IDENTITY = dict(window=float("inf"))
ABOUT = dict(
    kind="mask",
    training_free=True,
    export="custom",
    cache="rotated",
    test="masks",
    instead="a class with a sliding window: Mistral, whose weights are a Llama's",
)


def sliding_window(e: Encoding, *, window: Extent, full_every: Annotated[int, Bound(0)] = 0) -> Encoding:
    """Query i sees key j if i - j < window.

    Args:
      window: tokens, the query's own included.
      full_every: every n-th layer attends fully; 0 for none.
    """
    window = alternate(e, full_every, window, e.xp.inf)
    return e.replace(window=window if e.window is None else e.xp.minimum(window, e.window))
