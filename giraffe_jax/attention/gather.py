"""Attention of a device's queries to all keys of their rows, by an all-gather from the devices that share the rows.

In the backward pass each device has gradients for the keys and values of all tokens; a reduce-scatter sums them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from giraffe_jax.attention.columns import AXIS, divided, joined, size


def forward(part, q, k, v, place, bands, bias):
    """Returns this device's output and log-sum-exp; the arguments are its shards of those of context.attend."""
    k, v, k_place = _gathered((k, v, place))

    def some(inputs):
        q, q_place = inputs
        return part.forward(q, k, v, q_place, k_place, bands, bias)

    out, lse = joined(lax.map(some, divided((q, place), part.query_runs)))
    return out.astype(v.dtype), lse


def backward(part, q, k, v, place, bands, bias, out, lse, d_out):
    """Returns this device's gradients of q and of its own k and v, and its part of the bias's gradient."""
    own_kv = (k, v)
    k, v, k_place = _gathered((k, v, place))

    def some(sums, inputs):
        q, q_place, out, lse, d_out = inputs
        d_q, *terms = part.backward(q, k, v, q_place, k_place, bands, bias, out, lse, d_out)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, tuple(terms)), d_q

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, bias))
    (*d_keys, d_bias), d_q = lax.scan(some, zeros, divided((q, place, out, lse, d_out), part.query_runs))
    d_k, d_v = _scattered(jax.tree.map(lambda g, x: g.astype(x.dtype), tuple(d_keys), own_kv))
    return joined(d_q), d_k, d_v, d_bias


def _gathered(tree):
    """Returns a device's arrays [B t ...] gathered to those of all tokens, [B T ...], in the row's order."""

    def one(x):
        by_device = lax.all_gather(x, AXIS, axis=1).reshape(x.shape[0], size(), 2, -1, *x.shape[2:])
        ordered = jnp.concatenate([by_device[:, :, 0], by_device[:, ::-1, 1]], axis=1)
        return ordered.reshape(x.shape[0], -1, *x.shape[2:])

    return jax.tree.map(one, tree)


def _scattered(tree):
    """Returns this device's tokens of the sums over devices of arrays of all tokens: the transpose of `_gathered`."""

    def one(x):
        halves = x.reshape(x.shape[0], 2, size(), -1, *x.shape[2:])
        by_device = jnp.stack([halves[:, 0], halves[:, 1, ::-1]], axis=2)
        return lax.psum_scatter(by_device.reshape(x.shape), AXIS, scatter_dimension=1, tiled=True)

    return jax.tree.map(one, tree)
