"""Ramps between planes that are kept and planes that are interpolated: what the YaRN family shares.

Two ramps go by the same name and differ by up to 67% in the middle planes: linear in the plane's index (the released
code of YaRN and every engine) and linear in the number of rotations within original_len (the paper).
"""

import math
from typing import Any

from giraffe_jax.positions.encoding import Encoding


def index_bounds(e: Encoding, beta_fast, beta_slow, *, rounded: bool) -> tuple[Any, Any]:
    """Returns the planes with beta_fast and beta_slow rotations in original_len, where the ramp starts and ends.

    Args:
      e: its theta and original_len are read.
      beta_fast, beta_slow: rotations.
      rounded: round outwards to whole planes. The upper limit is head_dim - 1, as in the released code.
    """
    xp, d = e.xp, e.head_dim

    def plane_of(rotations):
        return d * xp.log(e.original_len / (rotations * 2 * math.pi)) / (2 * xp.log(e.theta))

    low, high = plane_of(beta_fast), plane_of(beta_slow)
    if rounded:
        low, high = xp.floor(low), xp.ceil(high)
    low, high = xp.maximum(low, 0), xp.minimum(high, d - 1)
    return low, xp.where(high == low, high + 0.001, high)


def index_ramp(e: Encoding, low, high):
    """Returns how much of each plane is interpolated, [R]: 0 up to plane `low`, 1 from plane `high`."""
    return e.xp.clip((e.planes - low) / (high - low), 0, 1)


def rotations_ramp(e: Encoding, low, high):
    """Returns how much of each plane is interpolated, [R]: 0 from `high` rotations in original_len, 1 up to `low`."""
    rotations = e.original_len * e.inv_freq / (2 * math.pi)
    return 1 - e.xp.clip((rotations - low) / (high - low), 0, 1)


def interpolate(e: Encoding, factor, share):
    """Returns inv_freq, blended by `share` [R] from th_i (0) to th_i / factor (1); factor 1 is exact, bit for bit."""
    return e.inv_freq * (1 - share * (1 - 1 / factor))


def magnitude(e: Encoding, factor, scale: Any = 1.0):
    """Returns YaRN's multiplier of cos and sin, 0.1 scale ln(factor) + 1."""
    return 0.1 * scale * e.xp.log(factor) + 1
