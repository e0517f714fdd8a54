"""ReRoPE: true distances within a window, one constant distance beyond it.

Su (2023), kexue.fm 9708; bojone/rerope. Usually with `logn` before it. No arXiv paper.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=8)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="bands",
    instead="ntk or yarn of the same reach",
)


def rerope(e: Encoding, *, window: Annotated[int, Bound(1)] = 512) -> Encoding:
    """Distance D where D < window, else `window`: far queries are rotated at `window`, far keys not at all."""
    return with_bands(e, near(window), far(window, Line(0.0, window), Line(0.0)))
