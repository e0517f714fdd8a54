"""T5's relative bias: one learned number for each head and bucket of distances.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv:1910.10683;
transformers' `T5Attention._relative_position_bucket` for causal attention. T5 shares the table between layers; here
each layer has its own.
"""

import dataclasses
import math
from typing import Annotated

import jax.numpy as jnp

from giraffe_jax.positions.biases import add_bias
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(num_buckets=8, max_distance=32)
IDENTITY = dict(num_buckets=8, max_distance=32)  # the table starts at 0
ABOUT = dict(
    kind="bias",
    training_free=False,
    export="custom",
    cache="rotated",
    test="biases",
    instead="none: a Llama's logits have no bias",
)


def t5(
    e: Encoding, *, num_buckets: Annotated[int, Bound(2)] = 32, max_distance: Annotated[int, Bound(2)] = 128
) -> Encoding:
    """Logits plus table[head, bucket(D)]: half of the buckets for single distances, half logarithmic.

    Args:
      num_buckets: columns of the table.
      max_distance: tokens from which all distances share the last bucket.
    """
    if max_distance <= num_buckets // 2:
        raise ValueError(f"max_distance must exceed num_buckets / 2 = {num_buckets // 2}, got {max_distance}.")
    return add_bias(e, T5(num_buckets, max_distance))


@dataclasses.dataclass(frozen=True)
class T5:
    """The bias term of `t5`."""

    num_buckets: int
    max_distance: int
    name = "t5"
    by_distance = True

    def init(self, key, num_heads: int):
        """Returns one layer's initial table, zeros [N, num_buckets]."""
        del key
        return {"table": jnp.zeros((num_heads, self.num_buckets))}

    def __call__(self, params, i, j, num_heads: int):
        """Returns table[head, bucket(i - j)], [#B N T S]."""
        distance = jnp.maximum(i - j, 0)
        exact = self.num_buckets // 2
        # Clipped before the logarithm, whose value below `exact` is not used.
        log = jnp.log(jnp.maximum(distance, exact) / exact) / math.log(self.max_distance / exact)
        far = jnp.minimum(exact + (log * (self.num_buckets - exact)).astype(jnp.int32), self.num_buckets - 1)
        bucket = jnp.where(distance < exact, distance, far)
        if params is None:
            return jnp.zeros((num_heads, 1, 1))
        # One-hot, not a gather: its gradient is a matmul, not a scatter.
        one_hot = (bucket[..., None] == jnp.arange(self.num_buckets)).astype(jnp.float32)
        one_hot = one_hot if one_hot.ndim == 3 else one_hot[:, 0]
        return jnp.einsum("...tsb,nb->...nts", one_hot, params["table"])
