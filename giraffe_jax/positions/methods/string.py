"""STRING: far distances are shifted down, into the range that pretraining saw often.

An et al., "Why Does the Effective Context Length of LLMs Fall Short?", arXiv:2410.18745; HKUNLP/STRING. Meant for use
within the trained context, whose longest distances are rare in training.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(shift=12, window=4)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="rotated",
    test="bands",
    instead="ntk or yarn of the same reach",
)


def string(
    e: Encoding, *, shift: Annotated[int, Bound(1)] | None = None, window: Annotated[int, Bound(0)] = 128
) -> Encoding:
    """Distance D where D < shift, else D - shift + window.

    Args:
      shift: tokens; by default 0.33 of original_len.
      window: the distance that D = shift becomes, tokens.
    """
    first = window_of(e, shift, 0.33)
    return with_bands(e, near(first), far(first, Line(shift=window - first)))
