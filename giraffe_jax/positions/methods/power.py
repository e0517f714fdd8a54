"""Giraffe's power basis: slow planes slowed more, the fastest left alone.

Pal et al., "Giraffe: Adventures in Expanding Context Lengths in LLMs", arXiv:2308.10882; exponent 0.5 is the value
reported. At d = 128 it slows the slowest plane eightfold.
"""

from giraffe_jax.positions.calls import NonNegative
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(exponent=0.5)
IDENTITY = dict(exponent=0.0)
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def power(e: Encoding, *, exponent: NonNegative) -> Encoding:
    """th_i * (1 - 2i / d)^exponent."""
    return e.replace(inv_freq=e.inv_freq * (1 - 2 * e.planes / e.head_dim) ** exponent)
