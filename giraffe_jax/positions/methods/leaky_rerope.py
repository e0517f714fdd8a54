"""Leaky ReRoPE: true distances within a window, interpolated ones beyond it.

Su (2023), kexue.fm 9708; bojone/rerope. No arXiv paper.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=8, factor=4.0)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="bands",
    instead="ntk or yarn of the same reach",
)


def leaky_rerope(
    e: Encoding, *, window: Annotated[int, Bound(1)] = 512, factor: Annotated[float, Bound(1.0)] = 16.0
) -> Encoding:
    """Distance D where D < window, else window + (D - window) / factor."""
    factor = float(factor)
    return with_bands(e, near(window), far(window, Line(1 / factor, window - window / factor), Line(1 / factor)))
