"""KERPLE: a learned logarithmic penalty on distance, two numbers for each head.

Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", arXiv:2205.09921, the
logarithmic kernel. As in the paper it replaces rotation when `nope` comes before it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from giraffe_jax.positions.biases import add_bias
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = None  # has no parameters, and always penalises distance
ABOUT = dict(
    kind="bias",
    training_free=False,
    export="custom",
    cache="rotated",
    test="biases",
    instead="none: a Llama's logits have no bias",
)


def kerple(e: Encoding) -> Encoding:
    """Logits minus p log(1 + a D), with p and a positive and learned; p starts in U(0, 2), a in U(0, 1)."""
    return add_bias(e, Kerple())


@dataclasses.dataclass(frozen=True)
class Kerple:
    """The bias term of `kerple`."""

    name = "kerple"
    by_distance = True
    least = 1e-2  # of both, as in the authors' code

    def init(self, key, num_heads: int):
        """Returns one layer's initial parameters, [N] each."""
        p, a = jax.random.split(key)
        return {"p": 2 * jax.random.uniform(p, (num_heads,)), "a": jax.random.uniform(a, (num_heads,))}

    def __call__(self, params, i, j, num_heads: int):
        """Returns -p log(1 + a (i - j)), [#B N T S]."""
        params = {"p": jnp.ones(num_heads), "a": jnp.full(num_heads, 0.5)} if params is None else params
        p, a = (jnp.maximum(params[k], self.least)[:, None, None] for k in ("p", "a"))
        return -p * jnp.log1p(a * jnp.maximum(i - j, 0))
