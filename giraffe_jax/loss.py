"""Next-token loss in chunks of tokens, so that the [B, T, V] logits never exist."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_nll(
    hidden: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    chunk: int = 1024,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]:
    """Returns (nll in nats, log-normaliser, whether the target is the argmax) of each token, float32.

    Args:
      chunk: tokens of a row whose logits exist at once; the backward pass recomputes them.
    """
    batch, num_tokens = targets.shape
    unembedding = unembedding.astype(hidden.dtype)

    def one(chunk_inputs):
        hidden_BtD, targets_Bt = chunk_inputs
        logits_BtV = jnp.einsum("btd,dv->btv", hidden_BtD, unembedding, preferred_element_type=jnp.float32)
        norm_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        target_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
        return norm_Bt - target_Bt, norm_Bt, jnp.argmax(logits_BtV, axis=-1) == targets_Bt

    if num_tokens <= chunk:
        return one((hidden, targets))
    padding = -num_tokens % chunk

    def split(x):  # [B T ...] -> [T/chunk B chunk ...]
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    chunks = jax.lax.map(jax.checkpoint(one), (split(hidden), split(targets)))
    nll, norm, correct = (jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :num_tokens] for x in chunks)
    return nll, norm, correct


def weighted_loss(
    nll: Float[Array, "B T"], norm: Float[Array, "B T"], weights: Float[Array, "B T"], *, z_loss: float = 0.0
) -> Float[Array, ""]:
    """Returns the sum over tokens of weight * (nll + z_loss * log-normaliser^2); divide by the sum of weights."""
    return jnp.sum(weights * (nll + z_loss * norm**2))
