"""Attention on a device that holds whole rows, while other devices hold other rows or heads.

It runs inside shard_map: left to itself, the compiler shards the loops of blockwise attention and all-reduces blocks of
keys in each of them.
"""

import jax
import jax.numpy as jnp


def forward(part, q, k, v, place, bands, bias):
    """Returns this device's output and log-sum-exp; the arguments are its shards of those of context.attend."""
    out, lse = part.forward(q, k, v, place, place, bands, bias)
    return out.astype(v.dtype), lse


def backward(part, q, k, v, place, bands, bias, out, lse, d_out):
    """Returns this device's gradients of q, k and v, and in float32 its part of the bias's gradient."""
    *d_inputs, d_bias = part.backward(q, k, v, place, place, bands, bias, out, lse, d_out)
    return *d_inputs, jax.tree.map(lambda x: x.astype(jnp.float32), d_bias)
