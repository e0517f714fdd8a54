"""Ministral 3's attention temperature: Llama 4's, counted in original_len and without the off-by-one.

transformers' Ministral 3, key `llama_4_scaling_beta` (0.1), on all layers together with yarn; the form of Llama 4,
which cites Scalable-Softmax; no arXiv paper of its own.
"""

from giraffe_jax.positions.calls import NonNegative, scale_queries
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = dict(beta=0.0)
NEEDS = ("positions",)
ABOUT = dict(
    kind="temperature",
    training_free=False,
    export="custom",
    cache="rotated",
    test="temperature",
    instead="Ministral 3's llama_4_scaling_beta, in another class; scale, at one length",
)


def ministral_temperature(e: Encoding, *, beta: NonNegative = 0.1) -> Encoding:
    """Logits of query n times 1 + beta ln(1 + floor(n / original_len))."""
    return scale_queries(e, 1 + beta * e.xp.log(1 + e.xp.floor(e.positions / e.original_len)))
