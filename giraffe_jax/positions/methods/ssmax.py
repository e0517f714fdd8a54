"""Scalable softmax: logits grow with the logarithm of how many keys there are, at a rate each head learns.

Nakanishi, "Scalable-Softmax Is Superior for Attention", arXiv:2501.19399, without its optional bias.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.slot import checked, scale_heads

EXAMPLE = dict()
IDENTITY = None  # has no parameters; plain attention where n + 1 = original_len, as the scales start
NEEDS = ("positions",)
ABOUT = dict(kind="temperature", training_free=False, export="custom", cache="rotated", instead="scale, at one length")


def ssmax(e: Encoding) -> Encoding:
    """Logits of query n times s_h ln(n + 1); s_h is learned in every layer, and starts at 1 / ln(original_len)."""
    # First in the list: flax draws parameters in this order, and any other would change the initial biases of a seed.
    e = checked(e.replace(learned=(Rates(e.original_len), *e.learned)))
    return scale_heads(e, e.xp.log(e.positions + 1)[..., None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rates:
    """The learned scales s_h of `ssmax`, as a `Learned` (positions/slot.py)."""

    original_len: Any  # [], tokens
    name = "ssmax"

    def init(self, key, num_heads: int):
        """Returns one layer's initial scales, [N]."""
        del key
        return {"scale": jnp.full(num_heads, 1 / jnp.log(self.original_len))}

    def apply(self, e: Encoding, params: Any) -> Encoding:
        """Returns the encoding with each head's logits multiplied by its scale."""
        return scale_heads(e, params["scale"])
