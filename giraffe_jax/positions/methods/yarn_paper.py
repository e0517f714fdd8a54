"""YaRN as its paper writes it: the ramp is linear in rotations, not in the plane's index.

Peng et al., arXiv:2309.00071, equations 17 to 22. No released model used it; for Llama 2 and factor 16 it interpolates
plane 32 two and a half times as much as `yarn` does.
"""

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.methods.yarn import check_rising
from giraffe_jax.positions.ramps import interpolate, magnitude, rotations_ramp

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="longrope", cache="rotated")


def yarn_paper(
    e: Encoding, *, factor: Factor, alpha: Positive = 1.0, beta: Positive = 32.0,
    attention_factor: Positive | None = None,
) -> Encoding:  # fmt: skip
    """`ntk_by_parts` with the gain 0.1 ln(factor) + 1, or attention_factor."""
    check_rising(strictly=True, alpha=alpha, beta=beta)
    gain = magnitude(e, factor) if attention_factor is None else attention_factor
    return e.replace(inv_freq=interpolate(e, factor, rotations_ramp(e, alpha, beta)), gain=e.gain * gain)
