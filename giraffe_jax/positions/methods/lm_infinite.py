"""LM-Infinite: attention to a window and the first tokens, at distances that never exceed the window.

Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", arXiv:2308.16137.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=16, num_global=2)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="bands",
    instead="a class with a sliding window (Mistral), without the first tokens",
)


def lm_infinite(
    e: Encoding, *, window: Annotated[int, Bound(1)] | None = None, num_global: Annotated[int, Bound(0)] = 10
) -> Encoding:
    """Distance D where D < window; beyond it only the first num_global tokens of a document, at distance `window`.

    Args:
      window: tokens; original_len by default.
      num_global: first tokens that are always seen.
    """
    window = window_of(e, window, 1.0)
    return with_bands(e, near(window), far(window, Line(0.0, window), Line(0.0), keys=num_global))
