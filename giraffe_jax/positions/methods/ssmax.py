"""Scalable softmax: logits grow with the logarithm of how many keys there are, at a rate each head learns.

Nakanishi, "Scalable-Softmax Is Superior for Attention", arXiv:2501.19399, without its optional bias.
"""

from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = None  # has no parameters; plain attention where n + 1 = original_len, as the scales start
NEEDS = ("positions",)
ABOUT = dict(kind="temperature", training_free=False, export="custom", cache="rotated", instead="scale, at one length")


def ssmax(e: Encoding) -> Encoding:
    """Logits of query n times s_h ln(n + 1); s_h is learned in every layer, and starts at 1 / ln(original_len)."""
    if e.log_n is not None:
        raise ValueError("ssmax is there already.")
    return e.replace(log_n=e.xp.log(e.positions + 1))
