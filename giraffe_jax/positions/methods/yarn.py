"""YaRN: fast planes kept, slow planes interpolated, a ramp between, and a gain on the logits.

Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", arXiv:2309.00071. The ramp is that of
the released code (linear in the plane's index), which all published numbers and all engines use; the paper's formula
ramps in the number of rotations and differs by up to 67% in the middle planes.
"""

import math

from giraffe_jax.positions.compose import Factor, NonNegative, Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)


def yarn(
    e: Encoding,
    *,
    factor: Factor,
    beta_fast: Positive = 32.0,
    beta_slow: Positive = 1.0,
    attention_factor: Positive | None = None,
    mscale: NonNegative | None = None,
    mscale_all_dim: NonNegative | None = None,
    truncate: bool = True,
) -> Encoding:
    """th_i / factor below beta_slow rotations in original_len, th_i above beta_fast, blended linearly in i between.

    Args:
      beta_fast: rotations within original_len from which a plane is kept.
      beta_slow: rotations up to which a plane is fully interpolated.
      attention_factor: the gain; by default 0.1 ln(factor) + 1, or DeepSeek's ratio where both mscales are given.
      mscale, mscale_all_dim: gain = (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1).
      truncate: round the ramp's ends outwards to whole planes, as the released code does.
    """
    xp, d = e.xp, e.head_dim

    def plane_of(rotations):
        return d * xp.log(e.original_len / (rotations * 2 * math.pi)) / (2 * xp.log(e.theta))

    low, high = plane_of(beta_fast), plane_of(beta_slow)
    if truncate:
        low, high = xp.floor(low), xp.ceil(high)
    low, high = xp.maximum(low, 0), xp.minimum(high, d - 1)
    high = xp.where(high == low, high + 0.001, high)
    ramp = xp.clip((e.planes - low) / (high - low), 0, 1)

    def magnitude(scale):
        return 0.1 * scale * xp.log(factor) + 1

    if attention_factor is not None:
        gain = attention_factor
    elif mscale and mscale_all_dim:
        gain = magnitude(mscale) / magnitude(mscale_all_dim)
    else:
        gain = magnitude(1.0)
    return e.replace(inv_freq=e.inv_freq * (1 - ramp * (1 - 1 / factor)), gain=e.gain * gain)
