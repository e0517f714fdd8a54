"""Dense attention: the reference. One logits tensor per band, O(T S) memory, nothing clever."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax.attention.places import Place
from giraffe_jax.positions import CAUSAL, Band

MASKED = -1e30


def dense(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K W"],
    *,
    q_place: Place,
    k_place: Place,
    bands: tuple[Band, ...] = (),
    bias=None,
) -> tuple[Float[Array, "B T N W"], Float[Array, "B T N"]]:
    """Returns softmax(q k / sqrt(H) + bias) v and the logits' log-sum-exp; see `attend` for the arguments."""
    num_heads, num_kv_heads, head_dim = q[0].shape[2], k[0].shape[2], q[0].shape[3]
    groups = (num_kv_heads, num_heads // num_kv_heads)
    allowed_BTS = q_place.index[:, :, None] >= k_place.index[:, None, :]
    allowed_BTS &= q_place.segment[:, :, None] == k_place.segment[:, None, :]
    i_BT1, j_B1S = q_place.within[:, :, None], k_place.within[:, None, :]
    logits_BKGTS = jnp.full((v.shape[0], *groups, q[0].shape[1], v.shape[1]), MASKED)
    covered_BTS = jnp.zeros_like(allowed_BTS)
    for q_band, k_band, band in zip(q, k, bands or (CAUSAL,), strict=True):
        q_BTKGH = q_band.reshape(*q_band.shape[:2], *groups, head_dim)
        band_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_band, preferred_element_type=jnp.float32)
        here_BTS = band.holds(i_BT1, j_B1S) & allowed_BTS
        covered_BTS |= here_BTS
        logits_BKGTS = jnp.where(here_BTS[:, None, None], band_BKGTS * head_dim**-0.5, logits_BKGTS)
    if bias is not None:
        bias_BNTS = bias(i_BT1[:, None], j_B1S[:, None], num_heads)
        shape = (v.shape[0], num_heads, *logits_BKGTS.shape[-2:])
        logits_BKGTS += jnp.broadcast_to(bias_BNTS, shape).reshape(logits_BKGTS.shape)
    covered_B11TS = covered_BTS[:, None, None]
    logits_BKGTS = jnp.where(covered_B11TS, logits_BKGTS, MASKED)
    # A query that sees no key gets zeros; softmax alone would give it the mean of the masked values.
    probs_BKGTS = jnp.where(covered_B11TS, jax.nn.softmax(logits_BKGTS, axis=-1), 0.0)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", probs_BKGTS.astype(v.dtype), v, preferred_element_type=jnp.float32)
    seen_B11T = covered_BTS.any(-1)[:, None, None]
    lse_BKGT = jnp.where(seen_B11T, jax.nn.logsumexp(logits_BKGTS, axis=-1), MASKED)
    out = out_BTKGH.reshape(*q[0].shape[:3], v.shape[-1]).astype(q[0].dtype)
    return out, jnp.moveaxis(lse_BKGT, 3, 1).reshape(q[0].shape[:3])
