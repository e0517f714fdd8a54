"""Next-token loss in chunks of tokens, so that the [B, T, V] logits never exist, forward or backward.

Axes: n chunks of t tokens on each device; P and C, the parts that the mesh divides rows and tokens into (see
sharding.local_chunks).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose
from giraffe_jax.sharding import constrain, copies, local_chunks


def token_nll(
    hidden: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    chunk: int = 1024,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]:
    """Returns (nll in nats, log-normaliser, whether the target is the argmax) of each token, float32.

    Args:
      chunk: tokens of a row on one device whose logits exist at once; the backward pass recomputes them.
    """
    if choose().loss == "cpu":
        flat = cpu.nll(hidden.reshape(-1, hidden.shape[-1]), unembedding.T.astype(hidden.dtype), targets.ravel(), chunk)
        nll, norm, correct = (x.reshape(targets.shape) for x in flat)
        return nll, norm, correct
    hidden_chunks, _ = local_chunks(hidden, chunk)
    target_chunks, restore = local_chunks(targets, chunk)
    unembedding = constrain(unembedding.astype(hidden.dtype), None, "vocab")

    @jax.checkpoint
    def one(part):
        hidden, targets = part
        logits, norm, target, _ = _logits(hidden, targets, unembedding)
        return norm - target, norm, jnp.argmax(logits, axis=-1) == targets

    nll, norm, correct = jax.lax.map(one, (hidden_chunks, target_chunks))
    return restore(nll), restore(norm), restore(correct)


def next_token_loss(
    hidden: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float | Float[Array, ""] = 0.0,
    chunk: int = 1024,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (sum of weight * (nll + z_loss * log-normaliser^2), sum of weight * nll), float32; only the first has a
    gradient.

    The gradient is computed with the logits of each chunk, so these are computed once. That of the unembedding is
    summed over chunks in float32 on each device, and over devices once; it is skipped if nothing reads it.

    Args:
      chunk: tokens of a row on one device whose logits exist at once.
    """
    total: Any = _loss(chunk, z_loss, hidden, unembedding, targets, weights)
    loss, nats = total
    return loss, jax.lax.stop_gradient(nats)


def _logits(hidden_PCbtD, targets_PCbt, unembedding):
    """Returns (logits, their logsumexp, the target's logit, one-hot targets) of a chunk; all but the last float32."""
    logits = jnp.einsum("pcbtd,dv->pcbtv", hidden_PCbtD, unembedding, preferred_element_type=jnp.float32)
    # A comparison and a sum: indexing a vocabulary that is sharded over devices would all-gather the logits.
    hit = jnp.arange(unembedding.shape[1]) == targets_PCbt[..., None]
    return logits, jax.nn.logsumexp(logits, axis=-1), jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), hit


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk, z_loss, hidden, unembedding, targets, weights):
    nll, norm, _ = token_nll(hidden, unembedding, targets, chunk=chunk)
    return jnp.sum(weights * (nll + z_loss * norm**2)), jnp.sum(weights * nll)


def _loss_forward(chunk, z_loss, hidden, unembedding, targets, weights):
    learns, dtype = unembedding.perturbed, unembedding.value.dtype
    z_loss, hidden, unembedding, targets, weights = (x.value for x in (z_loss, hidden, unembedding, targets, weights))
    if choose().loss == "cpu":
        flat, words = hidden.reshape(-1, hidden.shape[-1]), unembedding.T.astype(hidden.dtype)
        nll, norm, d_hidden, d_words = cpu.nll_and_gradients(
            flat, words, targets.ravel(), weights.ravel(), z_loss=z_loss, chunk=chunk, learns=learns
        )
        nll, norm = nll.reshape(targets.shape), norm.reshape(targets.shape)
        per_token, d_matrix = nll + z_loss * norm**2, None if d_words is None else d_words.T.astype(dtype)
        out = jnp.sum(weights * per_token), jnp.sum(weights * nll)
        return out, (d_hidden.reshape(hidden.shape), d_matrix, per_token, jnp.sum(weights * norm**2))
    matrix = constrain(unembedding.astype(hidden.dtype), None, "vocab")
    chunks = [local_chunks(x, chunk)[0] for x in (hidden, targets, weights)]
    restore_hidden, restore = local_chunks(hidden, chunk)[1], local_chunks(targets, chunk)[1]

    def one(d_matrix, part):
        hidden, targets, weights = part
        logits, norm, target, hit = _logits(hidden, targets, matrix)
        scale = weights * (1 + 2 * z_loss * norm)
        d_logits = scale[..., None] * jnp.exp(logits - norm[..., None]) - jnp.where(hit, weights[..., None], 0.0)
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum("pcbtv,dv->pcbtd", d_logits, matrix)
        if learns:
            d_matrix += jnp.einsum("pcbtd,pcbtv->pcdv", hidden, d_logits, preferred_element_type=jnp.float32)
        return d_matrix, (norm - target, norm, d_hidden)

    start = copies(jnp.zeros(matrix.shape, jnp.float32), hidden) if learns else None
    d_matrix, (nll, norm, d_hidden) = jax.lax.scan(one, start, tuple(chunks))
    if d_matrix is not None:
        d_matrix = constrain(d_matrix.sum((0, 1)), "embed", "vocab").astype(dtype)
        d_matrix, d_hidden = jax.lax.optimization_barrier((d_matrix, d_hidden))
    nll, norm = restore(nll), restore(norm)
    per_token = nll + z_loss * norm**2
    out = jnp.sum(weights * per_token), jnp.sum(weights * nll)
    return out, (restore_hidden(d_hidden), d_matrix, per_token, jnp.sum(weights * norm**2))


def _loss_backward(chunk, saved, cotangents):
    del chunk
    d_hidden, d_matrix, per_token, d_z_loss = saved
    g: Any = 0.0 if isinstance(cotangents[0], SymbolicZero) else cotangents[0]
    d_matrix = None if d_matrix is None else (g * d_matrix).astype(d_matrix.dtype)
    return g * d_z_loss, (g * d_hidden).astype(d_hidden.dtype), d_matrix, None, g * per_token


_loss.defvjp(_loss_forward, _loss_backward, symbolic_zeros=True)
