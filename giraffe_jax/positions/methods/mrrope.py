"""MrRoPE: a mixed-radix view of RoPE; planes are slowed by a power of the factor that grows across YaRN's ramp.

"MrRoPE", ICLR 2026 (OpenReview 1J63FJYJKg; no arXiv number read); mattian7/mrRoPE, LlamaYaRNRadix. "progressive" is
reported to be the better one without training.
"""

from typing import Literal

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.ramps import index_bounds, magnitude

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="longrope", cache="rotated")


def mrrope(
    e: Encoding,
    *,
    factor: Factor,
    kind: Literal["uniform", "progressive"] = "progressive",
    beta_fast: Positive = 32.0,
    beta_slow: Positive = 1.0,
) -> Encoding:
    """th_i / factor^(u / n) (uniform) or th_i / factor^(u (u + 1) / (n (n + 1))) (progressive), with yarn's gain.

    n is the number of planes between the rounded ends of yarn's ramp, and u counts them from 0 to n.
    """
    low, high = index_bounds(e, beta_fast, beta_slow, rounded=True)
    n = high - low
    u = e.xp.clip(e.planes - low, 0, n)
    power = u / n if kind == "uniform" else u * (u + 1) / (n * (n + 1))
    return e.replace(inv_freq=e.inv_freq * factor**-power, gain=e.gain * magnitude(e, factor))
