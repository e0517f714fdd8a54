"""YaRN: fast planes kept, slow planes interpolated, a ramp between, and a gain on the logits.

Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", arXiv:2309.00071. The ramp is that of
the released code (linear in the plane's index), which all published numbers and all engines use; `yarn_paper` has the
paper's.
"""

import jax

from giraffe_jax.positions.calls import Factor, NonNegative, Number, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.ramps import index_bounds, index_ramp, interpolate, magnitude

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="native", cache="rotated")


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
      mscale, mscale_all_dim: gain = (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1), which is what
        transformers' Llama does. DeepSeek's own models also multiply logits by the denominator's square: put
        scale(value=(0.1 mscale_all_dim ln(factor) + 1)^2) after it.
      truncate: round the ramp's ends outwards to whole planes, as the released code does.
    """
    check_rising(beta_slow=beta_slow, beta_fast=beta_fast)
    ramp = index_ramp(e, *index_bounds(e, beta_fast, beta_slow, rounded=truncate))
    if attention_factor is not None:
        gain = attention_factor
    elif mscale and mscale_all_dim:
        gain = magnitude(e, factor, mscale) / magnitude(e, factor, mscale_all_dim)
    else:
        gain = magnitude(e, factor)
    return e.replace(inv_freq=interpolate(e, factor, ramp), gain=e.gain * gain)


def check_rising(*, strictly: bool = False, **ends: Number) -> None:
    """Raises ValueError unless the first of two named ends of a ramp is below the second, or equal unless `strictly`.

    Arrays pass: inside a step the ends are traced, and they were checked as floats with the config.
    """
    (low_name, low), (high_name, high) = ends.items()
    if isinstance(low, jax.Array) or isinstance(high, jax.Array):
        return
    if low > high or (strictly and low == high):
        least = "more than" if strictly else "at least"
        raise ValueError(f"{high_name} must be {least} {low_name}, got {high_name} {high:g} and {low_name} {low:g}.")
