"""NTK-aware scaling: a larger base, so that fast planes stay and the slowest is divided by exactly the factor.

bloc97 (2023), described in arXiv:2309.00071, section 3.1. Middle planes are interpolated by less than the factor, so
the usable context ends before factor * original_len: choose a factor 1.5 to 2 times larger than the extension wanted.
"""

from giraffe_jax.positions.calls import Factor
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="native", cache="rotated")


def ntk(e: Encoding, *, factor: Factor) -> Encoding:
    """th_i * factor^(-2i / (d - 2)), which is RoPE with base theta * factor^(d / (d - 2))."""
    return e.replace(inv_freq=e.inv_freq * factor ** (-2 * e.planes / (e.head_dim - 2)))
