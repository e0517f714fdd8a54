"""Layers without rotation among layers with it: iRoPE, RNoPE, SWAN.

SmolLM3 (transformers' `no_rope_layers`, every fourth): this alone. Llama 4's iRoPE: nope_layers(every=4),
chunked(chunk_size=8192, full_every=4), llama4_temperature(every=4). SWAN-GPT, arXiv:2504.08719: nope_layers(every=n),
sliding_window(window, full_every=n), logn(every=n). RNoPE-SWA, arXiv:2501.18795: the first two of these.
"""

from typing import Annotated

from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.layers import alternate

EXAMPLE = dict(every=2)
IDENTITY = None  # every layer of at least one kind is changed
ABOUT = dict(
    kind="layers",
    training_free=False,
    export="custom",
    cache="rotated",
    test="masks",
    instead="SmolLM3, whose weights are a Llama's (no_rope_layers)",
)


def nope_layers(e: Encoding, *, every: Annotated[int, Bound(1)] = 4) -> Encoding:
    """0 for every plane of layers every, 2 every, ... (counted from 1)."""
    axes = 3 if e.inv_freq.ndim > 2 else 1  # [B T R] where tokens differ
    return e.replace(inv_freq=alternate(e, every, e.inv_freq, 0 * e.inv_freq, axes=axes))
