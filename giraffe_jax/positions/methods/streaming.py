"""StreamingLLM: a rolling window and the first tokens (attention sinks), positions counted inside the cache.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453. For endless streams, not for
longer context: what has left the window cannot be retrieved.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=16, sinks=2)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="rotated",
    test="bands",
    instead="a class with a sliding window (Mistral), without the first tokens",
)


def streaming(
    e: Encoding, *, window: Annotated[int, Bound(1)] | None = None, sinks: Annotated[int, Bound(0)] = 4
) -> Encoding:
    """Distance D where D < window; beyond it only the first `sinks` tokens, at min(i, sinks + window - 1) - j.

    Args:
      window: recent tokens in the cache, the current one included; original_len - sinks by default.
      sinks: first tokens of a document that stay in the cache.
    """
    recent = e.xp.maximum(1, window_of(e, None, 1.0) - sinks) if window is None else window
    return with_bands(e, near(recent), far(recent, Line(highest=sinks + recent - 1), keys=sinks))
