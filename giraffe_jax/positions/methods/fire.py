"""FIRE: a bias by a small network of the distance relative to the query's position, which works at any length.

Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", arXiv:2310.04418. As in
the paper it replaces rotation when `nope` comes before it.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from giraffe_jax import devices
from giraffe_jax.positions.biases import add_bias
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(width=4, threshold=16.0)
IDENTITY = None  # the network starts with random weights
ABOUT = dict(
    kind="bias",
    training_free=False,
    export="custom",
    cache="rotated",
    test="biases",
    instead="none: a Llama's logits have no bias",
)


def fire(
    e: Encoding,
    *,
    width: Annotated[int, Bound(1)] = 32,
    c: Annotated[float, Bound(0.0, above=True)] = 0.1,
    threshold: Annotated[float, Bound(0.0, above=True)] = 512.0,
) -> Encoding:
    """Logits plus f_h(psi(D) / psi(max(i, L))), psi(x) = log(abs(c x) + 1) and f a ReLU network of one hidden layer.

    Args:
      width: units of the hidden layer.
      c: initial value of the learned compression of distances.
      threshold: initial value of the learned L, tokens; up to there distances are relative to L, not to the position i.
    """
    return add_bias(e, Fire(width, float(c), float(threshold)))


@dataclasses.dataclass(frozen=True)
class Fire:
    """The bias term of `fire`, with one network per layer."""

    width: int
    c: float
    threshold: float
    name = "fire"
    # Hidden units computed at a time: on a CPU half a MiB, for a core's cache; elsewhere 64 MiB, to fill a GPU.
    UNITS, UNITS_ELSEWHERE = 2**17, 2**24

    def init(self, key, num_heads: int):
        """Returns one layer's initial parameters."""
        first, second = jax.random.split(key)
        bound = self.width**-0.5
        return {
            "w_in": jax.random.uniform(first, (self.width,), minval=-1.0),
            "b_in": jnp.zeros(self.width),
            "w_out": jax.random.uniform(second, (self.width, num_heads), minval=-bound, maxval=bound),
            "b_out": jnp.zeros(num_heads),
            "c": jnp.full((), self.c),
            "scale": jnp.ones(()),  # multiplies the threshold
        }

    def __call__(self, params, i, j, num_heads: int):
        """Returns the bias [#B N T S] of query indices i [#B 1 T 1] and key indices j [#B 1 1 S]."""
        p = self.init(jax.random.key(0), num_heads) if params is None else params

        def psi(x):
            return jnp.log(jnp.abs(p["c"] * x) + 1)

        def of_a_query(i):
            longest = jnp.maximum(i, jnp.abs(p["scale"] * self.threshold))
            x = psi(jnp.maximum(i - j, 0)) / psi(longest)
            hidden = jax.nn.relu(p["w_in"][:, None] * x[..., None, :] + p["b_in"][:, None])
            return jnp.einsum("uh,...uj->...hj", p["w_out"], hidden) + p["b_out"][:, None]

        # A few queries at a time, and hidden units recomputed for the gradient: all together they would take `width`
        # times the memory of the distances.
        i, j = (x if x.ndim == 2 else x[:, 0] for x in (i, j))
        i, j = jnp.moveaxis(i, -2, 0), j[..., 0, :]
        units = self.UNITS if devices.target().platform == "cpu" else self.UNITS_ELSEWHERE
        queries = max(1, units // (self.width * j.size))
        out = jax.lax.map(jax.checkpoint(of_a_query), i, batch_size=min(queries, len(i)))
        return jnp.moveaxis(out, 0, -2)
