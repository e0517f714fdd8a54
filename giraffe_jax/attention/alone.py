"""Attention of a device that has its rows whole, beside others that have other rows or heads.

Without it the compiler shards blockwise attention's loops by itself, and all-reduces blocks of keys in each of them.
"""

import jax
import jax.numpy as jnp


def forward(part, q, k, v, place, bands, bias):
    """Returns a device's output and log-sum-exp; arguments as in context.attend, of the device."""
    out, lse = part.forward(q, k, v, place, place, bands, bias)
    return out.astype(v.dtype), lse


def backward(part, q, k, v, place, bands, bias, out, lse, d_out):
    """Returns a device's gradients of q, k and v, and its share of that of bias, which is summed in float32."""
    *found, d_bias = part.backward(q, k, v, place, place, bands, bias, out, lse, d_out)
    return *found, jax.tree.map(lambda x: x.astype(jnp.float32), d_bias)
