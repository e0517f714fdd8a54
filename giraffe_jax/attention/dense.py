"""Dense attention: the reference. One logits tensor per band, O(T S) memory, nothing clever."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from giraffe_jax.positions import Band

MASKED = -1e30


def is_local(i, j, window, chunk):
    """Returns whether key j is less than `window` tokens before query i, and in its chunk of `chunk` tokens."""
    return (i - j < window) & (jnp.floor(i / chunk) == jnp.floor(j / chunk))


def dense(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K W"],
    *,
    q_index: Int[Array, "#B T"],
    k_index: Int[Array, "#B S"],
    within: tuple[Int[Array, "#B T"], Int[Array, "#B S"]],
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    bands: tuple[Band, ...],
    bias,
    length,
    local: tuple | None = None,
) -> Float[Array, "B T N W"]:
    """Returns softmax(q k / sqrt(H)) v; see `attend` for the arguments.

    Args:
      q_index, k_index: which keys a query may see: those up to its own index.
      within: index of each query and key in its document, which bands and biases read.
    """
    num_heads, num_kv_heads, head_dim = q[0].shape[2], k[0].shape[2], q[0].shape[3]
    allowed_BTS = q_index[:, :, None] >= k_index[:, None, :]
    i_BT1, j_B1S = within[0][:, :, None], within[1][:, None, :]
    if segments is not None:
        allowed_BTS &= segments[0][:, :, None] == segments[1][:, None, :]
    groups = (num_kv_heads, num_heads // num_kv_heads)
    if local is not None:
        allowed_BTS &= is_local(i_BT1, j_B1S, *local)
    logits_BKGTS = jnp.full((v.shape[0], *groups, q[0].shape[1], v.shape[1]), MASKED)
    covered_BTS = jnp.zeros_like(allowed_BTS)
    for q_band, k_band, band in zip(q, k, bands, strict=True):
        q_BTKGH = q_band.reshape(*q_band.shape[:2], *groups, head_dim)
        band_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_band, preferred_element_type=jnp.float32)
        here_BTS = band.mask(i_BT1, j_B1S, length) & allowed_BTS
        covered_BTS |= here_BTS
        logits_BKGTS = jnp.where(here_BTS[:, None, None], band_BKGTS * head_dim**-0.5, logits_BKGTS)
    if bias is not None:
        bias_BNTS = bias(i_BT1[:, None], j_B1S[:, None], num_heads)
        shape = (v.shape[0], num_heads, *logits_BKGTS.shape[-2:])
        logits_BKGTS += jnp.broadcast_to(bias_BNTS, shape).reshape(logits_BKGTS.shape)
    logits_BKGTS = jnp.where(covered_BTS[:, None, None], logits_BKGTS, MASKED)
    probs_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", probs_BKGTS.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out_BTKGH.reshape(*q[0].shape[:3], v.shape[-1]).astype(q[0].dtype)
