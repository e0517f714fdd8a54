"""S2 attention (LongLoRA): while training, tokens see only their group; half of the heads shift groups by half a group.

Chen et al., "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", arXiv:2309.12307. As in the
released code for variable lengths, shifted groups do not wrap around. Evaluation attends fully.
"""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp

from giraffe_jax.positions.biases import add_bias
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(group=16)
IDENTITY = "short"
NEEDS = ("positions", "key")
ABOUT = dict(kind="mask", training_free=False, export="weights only", cache="rotated", test="biases")


def s2(e: Encoding, *, group: Annotated[int, Bound(2)]) -> Encoding:
    """Query i sees key j if (i + s) // group == (j + s) // group; s is group // 2 in the second half of heads, else 0.

    Args:
      group: tokens; a quarter of the training length in the paper.
    """
    return e if e.key is None else add_bias(e, S2(group))


@dataclasses.dataclass(frozen=True)
class S2:
    """The mask of `s2` as a bias term; it has no parameters."""

    group: int

    def __call__(self, params: Any, i, j, num_heads: int):
        """Returns 0 for pairs of one group and -1e30 for others, [#B N T S]."""
        del params
        shift = jnp.where(jnp.arange(num_heads) >= (num_heads + 1) // 2, self.group // 2, 0)[:, None, None]
        same = (i + shift) // self.group == (j + shift) // self.group
        return jnp.where(same, 0.0, -1e30)
