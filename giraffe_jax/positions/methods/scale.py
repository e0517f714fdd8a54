"""A constant on the logits, fitted at the target length.

DroPE, arXiv:2512.12167: 1 + c ln(s) for an extension by s, with c fitted by perplexity: 0.412 for its 494M model,
0.103 for SmolLM-360M.
"""

from giraffe_jax.positions.calls import Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(value=1.2)
IDENTITY = dict(value=1.0)
ABOUT = dict(kind="temperature", training_free=True, export="longrope", cache="rotated")


def scale(e: Encoding, *, value: Positive) -> Encoding:
    """Every logit times `value`: queries and keys are each multiplied by its square root."""
    return e.replace(gain=e.gain * value**0.5)
