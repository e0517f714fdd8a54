"""LongRoPE: a searched divisor for every plane, one list for short sequences and one for long.

Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", arXiv:2402.13753; microsoft/LongRoPE,
rope/longrope.py with its "Dynamic" and "Mixed" variants (read); `longrope` of transformers (Phi-3). The lists switch
when the sequence outgrows original_len, so a cache that grows across it must hold raw keys. `giraffe search` finds
the divisors, as LongRoPE does or with recipe="longrope2" as its successor (Shang et al., arXiv:2502.20082).
"""

from typing import Annotated, Literal

from giraffe_jax.positions.calls import Bound, Divisors, Factor, Positive
from giraffe_jax.positions.encoding import Encoding, Start
from giraffe_jax.positions.ramps import magnitude

EXAMPLE = dict(short_factor=[1.0, 1.0, 1.0, 1.0], long_factor=[1.0, 1.5, 3.0, 4.0], factor=4.0)
IDENTITY = dict(short_factor=[1.0, 1.0, 1.0, 1.0], long_factor=[1.0, 1.0, 1.0, 1.0])
NEEDS = ("length",)
ABOUT = dict(kind="length", training_free=False, export="native", cache="raw")


def longrope(
    e: Encoding,
    *,
    short_factor: Divisors,
    long_factor: Divisors,
    factor: Factor | None = None,
    attention_factor: Positive | None = None,
    magnitude_policy: Literal["su", "yarn"] = "su",
    start_tokens: Annotated[int, Bound(0)] = 0,
    dynamic: bool = False,
) -> Encoding:
    """th_i / short_factor_i up to original_len tokens, th_i / long_factor_i beyond.

    Args:
      short_factor, long_factor: one divisor per rotary plane, head_dim / 2 each; or such a list for every layer.
      factor: extension of the context; sets the gain. None leaves the gain at 1.
      attention_factor: the gain itself, in place of the one from factor.
      magnitude_policy: "su" is sqrt(1 + ln(factor) / ln(original_len)), "yarn" is 0.1 ln(factor) + 1.
      start_tokens: the paper's n-hat; tokens at positions below it keep the rotation (and gain) they had before.
      dynamic: beyond original_len, blend linearly in the length from the short list to the long one, which is reached
        at factor * original_len.
    """
    xp, num_planes = e.xp, e.inv_freq.shape[-1]
    short, long = xp.asarray(short_factor), xp.asarray(long_factor)
    for name, values in (("short_factor", short), ("long_factor", long)):
        if values.shape[-1] != num_planes:
            raise ValueError(f"{name} must have head_dim / 2 = {num_planes} values, got {values.shape[-1]}.")
        if values.ndim == 2 and e.num_layers not in (None, len(values)):
            raise ValueError(f"{name} must have one list for each of {e.num_layers} layers, got {len(values)}.")
    if xp.ndim(e.length) and (short.ndim == 2 or long.ndim == 2):  # [L 1 1 R], against lengths [B T 1]
        short, long = (x[:, None, None] if x.ndim == 2 else x for x in (short, long))
    divisor = xp.where(e.length > e.original_len, long, short)
    if dynamic:
        if factor is None:
            raise ValueError("dynamic needs factor, at which the long list is reached.")
        beyond = xp.maximum(e.length / e.original_len - 1, 0)
        divisor = short + (long - short) * beyond / xp.maximum(factor - 1, 1e-6)
    if attention_factor is not None:
        gain = attention_factor
    elif factor is None:
        gain = 1.0
    elif magnitude_policy == "yarn":
        gain = magnitude(e, factor)
    else:
        gain = xp.sqrt(1 + xp.log(factor) / xp.log(e.original_len))
    if e.limits is not None and divisor.ndim == 2:
        raise ValueError("after mixed, layers cannot differ; put the lists into its choices.")
    if start_tokens:
        if e.start is not None:
            raise ValueError("an earlier longrope has start tokens already.")
        e = e.replace(start=Start(xp.asarray(float(start_tokens)), divisor, xp.asarray(1 / gain)))
    return e.replace(inv_freq=e.inv_freq / divisor, gain=e.gain * gain)
