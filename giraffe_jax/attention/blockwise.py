"""Blockwise attention: online softmax over key blocks, O(T) memory forward and backward, on any backend.

Rabe and Staats, arXiv:2112.05682; Dao et al. (FlashAttention), arXiv:2205.14135. The backward pass is written by
hand: it keeps only the output and the log-sum-exp, and recomputes each block's probabilities. Key blocks that causality
empties are skipped, not masked.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from giraffe_jax.positions import Band

MASKED = -1e30


def blockwise(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B T K H"], ...],
    v: Float[Array, "B T K H"],
    *,
    segments: Int[Array, "B T"] | None,
    bands: tuple[Band, ...],
    bias,
    length,
    block_size: int,
) -> Float[Array, "B T N H"]:
    """Returns what `dense` does for queries and keys of the same T tokens, never holding more than one block of
    logits."""
    batch, num_tokens, num_heads, head_dim = q[0].shape
    num_kv_heads = v.shape[2]
    block = min(block_size, num_tokens)
    padding = -num_tokens % block

    def to_blocks(x_BTNH):  # -> [M, B, K, G, block, H] with M blocks
        x = jnp.pad(x_BTNH, ((0, 0), (0, padding), (0, 0), (0, 0)))
        x = x.reshape(batch, -1, block, num_kv_heads, x.shape[2] // num_kv_heads, head_dim)
        return x.transpose(1, 0, 3, 4, 2, 5)

    if segments is None:
        segments = jnp.ones((batch, num_tokens), jnp.int32)
    # Padding has its own segment and comes last, so no real token attends to it.
    segments_MBt = jnp.pad(segments, ((0, 0), (0, padding)), constant_values=-1)
    segments_MBt = segments_MBt.reshape(batch, -1, block).transpose(1, 0, 2)
    q_blocks = tuple(to_blocks(x * jnp.asarray(head_dim**-0.5, x.dtype)) for x in q)
    k_blocks = tuple(to_blocks(x)[:, :, :, 0] for x in k)
    v_blocks = to_blocks(v)[:, :, :, 0]
    length = jnp.asarray(0.0 if length is None else length, jnp.float32)
    out: jax.Array = _flash(bands, bias, num_heads, q_blocks, k_blocks, v_blocks, segments_MBt, length)
    out_BTNH = out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, num_heads, head_dim)
    return out_BTNH[:, :num_tokens].astype(q[0].dtype)


# Shapes below: q_b [B K G t H] one query block of a band; k_b [B K s H]; logits [B K G t s]; segments [B t].


def _block_logits(bands, bias, num_heads, q_b, k_b, q_seg, k_seg, i, j, length):
    """Returns the masked logits of one block pair and, for each band, where it holds."""
    block = q_seg.shape[-1]
    i_t1 = i * block + jnp.arange(block)[:, None]
    j_1s = j * block + jnp.arange(block)[None, :]
    allowed_Bts = (i_t1 >= j_1s) & (q_seg[:, :, None] == k_seg[:, None, :])
    logits, masks = jnp.full((*q_b[0].shape[:-1], block), MASKED), []
    for q_x, k_x, band in zip(q_b, k_b, bands, strict=True):
        mask = (band.mask(i_t1, j_1s, length) & allowed_Bts)[:, None, None]
        dots = jnp.einsum("bkgth,bksh->bkgts", q_x, k_x, preferred_element_type=jnp.float32)
        logits = jnp.where(mask, dots, logits)
        masks.append(mask)
    if bias is not None:
        bias_Nts = jnp.broadcast_to(bias(i_t1, j_1s, num_heads), (num_heads, block, block))
        bias_KGts = bias_Nts.reshape(*q_b[0].shape[1:3], block, block)
        logits = jnp.where(functools.reduce(jnp.logical_or, masks), logits + bias_KGts, MASKED)
    return logits, masks


def _at(blocks, index):
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _flash(bands, bias, num_heads, q, k, v, segments, length):
    return _forward(bands, bias, num_heads, q, k, v, segments, length)[0]


def _forward(bands, bias, num_heads, q, k, v, segments, length):
    """Returns (out [M B K G t H] float32, log-sum-exp [M B K G t])."""

    def query_block(i):
        q_b, q_seg = _at(q, i), segments[i]

        def key_block(j, carry):
            top, total, out = carry
            logits, masks = _block_logits(bands, bias, num_heads, q_b, _at(k, j), q_seg, segments[j], i, j, length)
            new_top = jnp.maximum(top, logits.max(-1))
            # A row that has met no key yet has top = MASKED; its exp(0) must not count.
            probs = jnp.where(logits > MASKED / 2, jnp.exp(logits - new_top[..., None]), 0.0)
            decay = jnp.exp(top - new_top)
            v_b = v[j]
            new_out = jnp.einsum("bkgts,bksh->bkgth", probs.astype(v_b.dtype), v_b, preferred_element_type=jnp.float32)
            return new_top, total * decay + probs.sum(-1), out * decay[..., None] + new_out

        shape = q_b[0].shape
        start = (jnp.full(shape[:-1], MASKED), jnp.zeros(shape[:-1]), jnp.zeros(shape, jnp.float32))
        top, total, out = lax.fori_loop(0, i + 1, key_block, start)
        total = jnp.where(total == 0, 1.0, total)
        return out / total[..., None], top + jnp.log(total)

    return lax.map(query_block, jnp.arange(v.shape[0]))


def _flash_forward(bands, bias, num_heads, q, k, v, segments, length):
    out, lse = _forward(bands, bias, num_heads, q, k, v, segments, length)
    return out, (q, k, v, segments, length, out, lse)


def _flash_backward(bands, bias, num_heads, saved, d_out):
    q, k, v, segments, length, out, lse = saved
    num_blocks = v.shape[0]
    dot_MBKGt = jnp.sum(d_out * out, axis=-1)

    def key_block(d_q, j):
        k_b, v_b, k_seg = _at(k, j), v[j], segments[j]

        def query_block(i, carry):
            d_q, d_k, d_v = carry
            q_b = _at(q, i)
            logits, masks = _block_logits(bands, bias, num_heads, q_b, k_b, segments[i], k_seg, i, j, length)
            probs = jnp.where(logits > MASKED / 2, jnp.exp(logits - lse[i][..., None]), 0.0)
            d_out_b = d_out[i].astype(v_b.dtype)
            d_v += jnp.einsum("bkgts,bkgth->bksh", probs.astype(v_b.dtype), d_out_b, preferred_element_type=jnp.float32)
            d_probs = jnp.einsum("bkgth,bksh->bkgts", d_out_b, v_b, preferred_element_type=jnp.float32)
            d_logits = probs * (d_probs - dot_MBKGt[i][..., None])
            new_d_q, new_d_k = [], []
            for b, mask in enumerate(masks):
                d_band = (jnp.where(mask, d_logits, 0.0) if len(bands) > 1 else d_logits).astype(v_b.dtype)
                dq_i = jnp.einsum("bkgts,bksh->bkgth", d_band, k_b[b], preferred_element_type=jnp.float32)
                dk_j = jnp.einsum("bkgts,bkgth->bksh", d_band, q_b[b], preferred_element_type=jnp.float32)
                new_d_q.append(d_q[b].at[i].add(dq_i))
                new_d_k.append(d_k[b] + dk_j)
            return tuple(new_d_q), tuple(new_d_k), d_v

        zeros = jnp.zeros(v_b.shape, jnp.float32)
        d_q, d_k, d_v = lax.fori_loop(j, num_blocks, query_block, (d_q, (zeros,) * len(bands), zeros))
        return d_q, (d_k, d_v)

    d_q = tuple(jnp.zeros(x.shape, jnp.float32) for x in q)
    d_q, (d_k, d_v) = lax.scan(key_block, d_q, jnp.arange(num_blocks))
    cast = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
    return cast(d_q, q), cast(d_k, k), d_v.astype(v.dtype), None, jnp.zeros_like(length)


_flash.defvjp(_flash_forward, _flash_backward)
