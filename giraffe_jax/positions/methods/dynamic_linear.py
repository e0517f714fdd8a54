"""Dynamic linear interpolation: linear with the factor length / original_len, where that exceeds 1.

arXiv:2309.00071, appendix B.1 ("Dynamic Scaling"), for position interpolation. A growing cache must hold raw keys.
"""

from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(
    kind="length",
    training_free=True,
    export="custom",
    cache="raw",
    instead="linear, with the factor of the longest text",
)


def dynamic_linear(e: Encoding) -> Encoding:
    """th_i / max(1, length / original_len)."""
    return e.replace(inv_freq=e.inv_freq / e.xp.maximum(e.length / e.original_len, 1.0))
