"""NTK-by-parts: planes with many rotations kept, those with few interpolated, a ramp in rotations between.

Peng et al., arXiv:2309.00071, section 3.2: YaRN without its gain, and with the paper's own ramp.
"""

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.methods.yarn import check_rising
from giraffe_jax.positions.ramps import interpolate, rotations_ramp

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="longrope", cache="rotated")


def ntk_by_parts(e: Encoding, *, factor: Factor, alpha: Positive = 1.0, beta: Positive = 32.0) -> Encoding:
    """th_i / factor up to alpha rotations in original_len, th_i from beta, blended linearly in rotations between."""
    check_rising(strictly=True, alpha=alpha, beta=beta)
    return e.replace(inv_freq=interpolate(e, factor, rotations_ramp(e, alpha, beta)))
