"""Blockwise attention: online softmax over key blocks, O(T) memory forward and backward, on any backend.

Rabe and Staats, arXiv:2112.05682; Dao et al. (FlashAttention), arXiv:2205.14135. The backward pass is written by hand:
it keeps only the output and the log-sum-exp, and recomputes each block's probabilities.

Which blocks are visited, and how they are cut and masked, is in walk.py; the bands of a query share one online softmax.
Queries and keys may be different tokens, and where they are is traced (`Place`), as attention over several devices
needs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.places import Place
from giraffe_jax.attention.walk import from_key_blocks, from_query_blocks, make_walk, to_query_blocks
from giraffe_jax.positions import Band

ATTENTION_OUT, ATTENTION_LSE = "attention_out", "attention_lse"  # names for remat policies


def blockwise(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    *,
    q_place: Place,
    k_place: Place,
    bands: tuple[Band, ...] = (),
    bias=None,
    block_size: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns the same as `dense`, but never holds more than one block of logits."""
    outputs: Any = _flash(block_size, q, k, v, bias, (q_place, k_place), bands)
    return outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(block_size, q, k, v, bias, places, bands):
    out, lse = forward(block_size, q, k, v, bias, places, bands)
    return out.astype(v.dtype), lse


def _flash_forward(block_size, q, k, v, bias, places, bands):
    outputs: Any = _flash(block_size, q, k, v, bias, places, bands)
    out, lse = outputs
    out, lse = checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_LSE)
    return (out, lse), (q, k, v, bias, places, bands, out, lse)


def _flash_backward(block_size, saved, cotangents):
    q, k, v, bias, *_ = saved
    d_q, d_k, d_v, d_bias = backward(block_size, *saved, *cotangents)
    cast = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
    return cast(d_q, q), cast(d_k, k), d_v.astype(v.dtype), cast(d_bias, bias), None, None


_flash.defvjp(_flash_forward, _flash_backward)


def forward(block_size, q, k, v, bias, places, bands):
    """Returns (out [B T N H], log-sum-exp [B T N]) in float32; a query that sees no key has 0 and MASKED.

    Args:
      block_size: tokens of a block of keys; None takes walk.BLOCK.
      q, k, v, bias, bands: as in `attend`.
      places: (q_place, k_place).
    """
    walk = make_walk(block_size, q, k, v, bias, places, bands)
    rows, width = walk.q[0].shape[-2:]

    def query_block(row, head, i):
        def update(carry, b, j, masked):
            top, total, out = carry
            logits, mask = walk.logits(row, head, b, i, j, masked)
            new_top = jnp.maximum(top, logits.max(-1))
            probs = jnp.exp(logits - new_top[:, None])
            # A row that has met no key yet has top = MASKED; its exp(0) must not count.
            probs = probs if mask is None else jnp.where(mask, probs, 0.0)
            decay, v_b = jnp.exp(top - new_top), walk.v[row, head, j]
            new_out = jnp.dot(probs.astype(v_b.dtype), v_b, preferred_element_type=jnp.float32)
            return new_top, total * decay + probs.sum(-1), out * decay[:, None] + new_out

        start = (jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((rows, width)))
        top, total, out = walk.over_keys(row, i, update, start)
        total = jnp.where(total == 0, 1.0, total)
        return out / total[:, None], top + jnp.log(total)

    out, lse = walk.over_heads(lambda row, head: lax.map(lambda i: query_block(row, head, i), walk.query_blocks))
    return from_query_blocks(out, q[0].shape), from_query_blocks(lse, q[0].shape[:-1])


def backward(block_size, q, k, v, bias, places, bands, out, lse, d_out, d_lse):
    """Returns the gradients of q, k, v and bias in float32, given those of `out` and `lse`, which may be of attention
    over more keys than `k`."""
    walk = make_walk(block_size, q, k, v, bias, places, bands)
    # A logit's gradient is its probability times (d_out . value - dot); the gradient of lse enters through dot alone.
    dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - d_lse
    cut = functools.partial(to_query_blocks, num_kv_heads=v.shape[2], block=walk.block)
    d_outs, lses, dots = cut(d_out.astype(v.dtype)), cut(lse), cut(dot)
    # Gradients of keys and values are summed transposed: a CPU multiplies by probabilities twice as fast as by their
    # transpose.
    d_outs_t, q_t = d_outs.swapaxes(-1, -2), tuple(x.swapaxes(-1, -2) for x in walk.q)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    zero_q, zero_k = jnp.zeros(walk.q[0].shape[-2:]), jnp.zeros(walk.v.swapaxes(-1, -2).shape[2:])
    zero_bias = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias)

    def one_head(row, head):
        def query_block(carry, i):
            d_out_b, lse_b, dot_b = d_outs[row, head, i], lses[row, head, i], dots[row, head, i]

            def update(carry, b, j, masked):
                d_q, d_k, d_v, d_bias = carry
                logits, mask = walk.logits(row, head, b, i, j, masked)
                probs = jnp.exp(logits - lse_b[:, None])
                probs = probs if mask is None else jnp.where(mask, probs, 0.0)
                v_b, k_b = walk.v[row, head, j], walk.k[b][row, head, j]
                d_v = d_v.at[j].add(product(d_outs_t[row, head, i], probs.astype(v_b.dtype)))
                d_logits = probs * (product(d_out_b, v_b.T) - dot_b[:, None])
                if bias is not None:
                    d_bias = jax.tree.map(jnp.add, d_bias, walk.pull_bias(row, head, i, j, d_logits))
                d_logits = d_logits.astype(v_b.dtype)
                d_q = _replace(d_q, b, d_q[b] + product(d_logits, k_b))
                d_k = _replace(d_k, b, d_k[b].at[j].add(product(q_t[b][row, head, i], d_logits)))
                return d_q, d_k, d_v, d_bias

            d_q, *carry = walk.over_keys(row, i, update, ((zero_q,) * len(q), *carry))
            return tuple(carry), d_q

        carry, d_q = lax.scan(query_block, ((zero_k,) * len(q), zero_k, zero_bias), walk.query_blocks)
        return d_q, *carry

    d_q, d_k, d_v, d_bias = walk.over_heads(one_head)
    scale = q[0].shape[-1] ** -0.5
    d_q = tuple(from_query_blocks(x, q[0].shape) * scale for x in d_q)
    d_k = tuple(from_key_blocks(x, v.shape) for x in d_k)
    return d_q, d_k, from_key_blocks(d_v, v.shape), jax.tree.map(lambda x: x.sum((0, 1)), d_bias)


def _replace(values: tuple, at: int, value) -> tuple:
    return (*values[:at], value, *values[at + 1 :])
