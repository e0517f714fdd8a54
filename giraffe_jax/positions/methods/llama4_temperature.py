"""Llama 4's attention temperature: queries are scaled up a little every `floor_scale` tokens.

meta-llama/llama-models, `attn_temperature_tuning` (on the layers without RoPE, every fourth); transformers'
`floor_scale` and `attn_scale`. Nakanishi, arXiv:2501.19399, is the work it cites.
"""

from typing import Annotated

from giraffe_jax.positions.calls import Bound, NonNegative, Positive, scale_queries
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.layers import alternate

EXAMPLE = dict(floor_scale=16.0)
IDENTITY = dict(attn_scale=0.0)
NEEDS = ("positions",)
ABOUT = dict(
    kind="temperature",
    training_free=False,
    export="custom",
    cache="rotated",
    test="temperature",
    instead="Llama 4's attn_temperature_tuning, in another class; scale, at one length",
)


def llama4_temperature(
    e: Encoding,
    *,
    floor_scale: Positive = 8192.0,
    attn_scale: NonNegative = 0.1,
    every: Annotated[int, Bound(0)] = 0,
) -> Encoding:
    """Logits of query n times 1 + attn_scale ln(1 + floor((n + 1) / floor_scale)).

    Args:
      floor_scale: tokens.
      every: only in layers every, 2 every, ... (counted from 1); 0 for all.
    """
    scale = 1 + attn_scale * e.xp.log(1 + e.xp.floor((e.positions + 1) / floor_scale))
    return scale_queries(e, alternate(e, every, 1.0, scale, axes=2) if every else scale)
