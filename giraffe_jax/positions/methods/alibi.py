"""ALiBi: a penalty on every logit that grows with distance, at a different rate in each head.

Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
arXiv:2108.12409; ofirpress/attention_with_linear_biases for head counts that are not powers of two. As in the paper it
replaces rotation when `nope` comes before it.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

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


def alibi(e: Encoding) -> Encoding:
    """Logits minus slope_h * D, with slopes 2^(-8 h / N) for heads h = 1 .. N.

    If N is not a power of two: the slopes for the next lower power, then every second slope for the next higher one.
    """
    return add_bias(e, Alibi())


@dataclasses.dataclass(frozen=True)
class Alibi:
    """The bias term of `alibi`; it has no parameters."""

    by_distance = True

    def __call__(self, params: Any, i, j, num_heads: int):
        """Returns -slope_h * (i - j), [#B N T S]."""
        del params
        return -jnp.asarray(slopes(num_heads), jnp.float32)[:, None, None] * (i - j)


def slopes(num_heads: int) -> np.ndarray:
    """Returns the slope of each head, [N]."""
    below = 2 ** int(math.log2(num_heads))
    first = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    if below == num_heads:
        return first
    between = 2.0 ** (-4 * np.arange(1, 2 * below + 1, 2) / below)
    return np.concatenate([first, between[: num_heads - below]])
