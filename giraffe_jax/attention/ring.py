"""Ring attention: keys and values go around the devices that share a row, and no device ever holds all of them.

Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", arXiv:2310.01889, with
columns in zig-zag order. Keys and values are sent on before attention to them is computed, so that the compiler may do
both at once. In the backward pass their gradients travel around with them, and end on the device that they belong to.
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
    """Returns attention over all keys, given (out, log-sum-exp) of attention over disjoint parts of them."""
    lses = jnp.stack([lse for _, lse in parts])
    top = lses.max(0)
    # A part whose keys are all masked gets weight 0, even if that is so of every part.
    weights = jnp.where(lses > MASKED, jnp.exp(lses - top), 0.0)
    total = weights.sum(0)
    seen = jnp.where(total > 0, total, 1.0)
    out = sum(w[..., None] * x.astype(jnp.float32) for w, (x, _) in zip(weights / seen, parts, strict=True))
    return jnp.asarray(out).astype(parts[0][0].dtype), jnp.where(total > 0, top + jnp.log(seen), MASKED)


def forward(part, q, k, v, place, bands, bias):
    """Returns this device's output and log-sum-exp; the arguments are its shards of those of context.attend."""
    queries = divided((q, place), part.query_runs)

    def step(carry, _):
        (k, v, k_place), outputs = carry
        sent = _on((k, v, k_place))

        def some(inputs):
            (q, q_place), (out, lse) = inputs
            part_out, part_lse = part.forward(q, k, v, q_place, k_place, bands, bias)
            return merge([(out, lse), (part_out.astype(jnp.float32), part_lse)])

        return (sent, lax.map(some, (queries, outputs))), None

    out = jnp.zeros(q[0].shape, jnp.float32)
    nothing = divided((out, jnp.full(out.shape[:-1], MASKED)), part.query_runs)
    (_, outputs), _ = lax.scan(step, ((k, v, place), nothing), length=size())
    out, lse = joined(outputs)
    return out.astype(v.dtype), lse


def backward(part, q, k, v, place, bands, bias, out, lse, d_out):
    """Returns this device's gradients of q and of its own k and v, and its part of the bias's gradient."""
    queries = divided((q, place, out, lse, d_out), part.query_runs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, bias))

    def step(carry, _):
        (k, v, k_place), d_keys, d_bias, d_q = carry
        # The gradients of these keys that other devices have summed arrive while this one computes its part.
        sent, arrived = _on((k, v, k_place)), _on(d_keys)

        def some(sums, inputs):
            (q, q_place, out, lse, d_out), d_q = inputs
            term_q, *terms = part.backward(q, k, v, q_place, k_place, bands, bias, out, lse, d_out)
            return _sum(sums, tuple(terms)), _sum(d_q, term_q)

        (d_k, d_v, d_bias), d_q = lax.scan(some, (*zeros[:2], d_bias), (queries, d_q))
        return (sent, _sum(arrived, (d_k, d_v)), d_bias, d_q), None

    d_q = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), queries[0])
    start: Any = ((k, v, place), zeros[:2], zeros[2], d_q)
    (_, d_keys, d_bias, d_q), _ = lax.scan(step, start, length=size())
    return joined(d_q), *_on(d_keys), d_bias


def _on(tree):
    """Sends arrays to the next device of the ring; returns those of the device before."""
    parts = size()
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, [(i, (i + 1) % parts) for i in range(parts)]), tree)


def _sum(a, b):
    return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), a, b)
