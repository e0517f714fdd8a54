"""Ring attention: keys and values go around the devices that share a row, and no device ever holds all of them.

Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", arXiv:2310.01889, with
columns in zig-zag order. What comes next is sent before what is here is multiplied, so that a compiler may do both at
once. In the backward pass the gradients of keys and values follow these around, and end where they belong.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from giraffe_jax.attention.columns import AXIS, divided, joined, size
from giraffe_jax.attention.dense import MASKED


def merge(
    parts: Sequence[tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns the attention over all keys from that over disjoint parts of them: (out, log-sum-exp) of each."""
    lses = jnp.stack([lse for _, lse in parts])
    top = lses.max(0)
    # Parts that saw nothing weigh nothing, also where no part saw anything.
    weights = jnp.where(lses > MASKED, jnp.exp(lses - top), 0.0)
    total = weights.sum(0)
    seen = jnp.where(total > 0, total, 1.0)
    out = sum(w[..., None] * x.astype(jnp.float32) for w, (x, _) in zip(weights / seen, parts, strict=True))
    return jnp.asarray(out).astype(parts[0][0].dtype), jnp.where(total > 0, top + jnp.log(seen), MASKED)


def forward(part, q, k, v, place, bands, bias):
    """Returns a device's output and log-sum-exp; arguments as in context.attend, of the device."""
    queries = divided((q, place), part.query_runs)

    def step(carry, _):
        (k, v, k_place), found = carry
        sent = _on((k, v, k_place))

        def some(inputs):
            (q, q_place), (out, lse) = inputs
            here, here_lse = part.forward(q, k, v, q_place, k_place, bands, bias)
            return merge([(out, lse), (here.astype(jnp.float32), here_lse)])

        return (sent, lax.map(some, (queries, found))), None

    out = jnp.zeros(q[0].shape, jnp.float32)
    nothing = divided((out, jnp.full(out.shape[:-1], MASKED)), part.query_runs)
    (_, found), _ = lax.scan(step, ((k, v, place), nothing), length=size())
    out, lse = joined(found)
    return out.astype(v.dtype), lse


def backward(part, q, k, v, place, bands, bias, out, lse, d_out):
    """Returns a device's gradients of q, of its own k and v, and its share of that of bias."""
    queries = divided((q, place, out, lse, d_out), part.query_runs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, bias))

    def step(carry, _):
        (k, v, k_place), d_keys, d_bias, d_q = carry
        # What was summed of these keys on other devices arrives while this one computes its share.
        sent, arrived = _on((k, v, k_place)), _on(d_keys)

        def some(sums, inputs):
            (q, q_place, out, lse, d_out), d_q = inputs
            more_q, *more = part.backward(q, k, v, q_place, k_place, bands, bias, out, lse, d_out)
            return _sum(sums, tuple(more)), _sum(d_q, more_q)

        (d_k, d_v, d_bias), d_q = lax.scan(some, (*zeros[:2], d_bias), (queries, d_q))
        return (sent, _sum(arrived, (d_k, d_v)), d_bias, d_q), None

    d_q = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), queries[0])
    start: Any = ((k, v, place), zeros[:2], zeros[2], d_q)
    (_, d_keys, d_bias, d_q), _ = lax.scan(step, start, length=size())
    return joined(d_q), *_on(d_keys), d_bias


def _on(tree):
    """Returns what the device before this one had."""
    parts = size()
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, [(i, (i + 1) % parts) for i in range(parts)]), tree)


def _sum(a, b):
    return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), a, b)
