"""LongRoPE: a searched divisor for every plane, one list for short sequences and one for long.

Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", arXiv:2402.13753; `longrope` of
transformers (Phi-3). The lists switch when the sequence outgrows original_len, so a cache that grows across it must
hold raw keys.
"""

from giraffe_jax.positions.compose import Divisors, Factor, Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(short_factor=[1.0, 1.0, 1.0, 1.0], long_factor=[1.0, 1.5, 3.0, 4.0], factor=4.0)
IDENTITY = dict(short_factor=[1.0, 1.0, 1.0, 1.0], long_factor=[1.0, 1.0, 1.0, 1.0])
NEEDS = ("length",)


def longrope(
    e: Encoding,
    *,
    short_factor: Divisors,
    long_factor: Divisors,
    factor: Factor | None = None,
    attention_factor: Positive | None = None,
) -> Encoding:
    """th_i / short_factor_i up to original_len tokens, th_i / long_factor_i beyond.

    Args:
      short_factor, long_factor: one divisor per rotary plane, head_dim / 2 each.
      factor: extension of the context; sets the gain sqrt(1 + ln(factor) / ln(original_len)). None leaves the gain at
      1. attention_factor: the gain itself, instead.
    """
    xp, num_planes = e.xp, e.inv_freq.shape[-1]
    for name, values in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(values) != num_planes:
            raise ValueError(f"{name} must have head_dim / 2 = {num_planes} values, got {len(values)}.")
    divisor = xp.where(e.length > e.original_len, xp.asarray(long_factor), xp.asarray(short_factor))
    if attention_factor is not None:
        gain = attention_factor
    elif factor is not None:
        gain = xp.sqrt(1 + xp.log(factor) / xp.log(e.original_len))
    else:
        gain = 1.0
    return e.replace(inv_freq=e.inv_freq / divisor, gain=e.gain * gain)
