"""Dynamic NTK: NTK-aware scaling whose factor grows with the sequence beyond original_len.

emozilla (2023); arXiv:2309.00071, appendix B.1; the formula is that of transformers' `dynamic`. Keys rotated at one
length are wrong at another: a cache that grows must hold raw keys, or the length must be pinned.
"""

from giraffe_jax.positions.calls import Factor
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factor=2.0)
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(kind="length", training_free=True, export="native", cache="raw")


def dynamic(e: Encoding, *, factor: Factor) -> Encoding:
    """NTK-aware scaling by s = factor * length / original_len - (factor - 1), where that exceeds 1."""
    s = e.xp.maximum(factor * e.length / e.original_len - (factor - 1), 1.0)
    return e.replace(inv_freq=e.inv_freq * s ** (-2 * e.planes / (e.head_dim - 2)))
