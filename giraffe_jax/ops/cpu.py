"""Forms that are fast on one CPU: a layer's matmuls, SwiGLU, RMSNorm and the loss, with hand-written gradients.

XLA's CPU backend runs a matmul at the machine's peak if its operands are plain matrices and the result has no fewer
columns than rows, and else at half of it; and it does not fuse across matmuls, so every array of an elementwise formula
is one more pass over memory. Other devices have neither fault. ops/choose.py says where these run; they compute the
same formulas as the model and the loss do without them.

Axes: M tokens, I and O a map's inputs and outputs, D model, F MLP, V vocabulary.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

MLP_CHUNK = 512  # tokens whose hidden layer stays in the cache
TILE = 512  # rows of the unembedding (words) in one matmul
LOWEST = -1e30


# Linear maps


def linear(x: Float[Array, "B T ..."], w: Float[Array, "..."]) -> Float[Array, "B T ..."]:
    """Returns x w, contracted over all axes of x but the first two."""
    out: Any = _linear(x, w)
    return out


def _flat(x, w):
    """Returns x and w as matrices."""
    rows, inputs = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    return x.reshape(rows, inputs), w.reshape(inputs, -1)


@jax.custom_vjp
def _linear(x, w):
    return _product(x, w)


def _product(x, w):
    return jnp.dot(*_flat(x, w)).reshape(*x.shape[:2], *w.shape[x.ndim - 2 :])


def weight_gradient(x: Float[Array, "M I"], g: Float[Array, "M O"], dtype: Any = None) -> Float[Array, "I O"]:
    """Returns x^T g, with the wider of I and O as the columns of the product."""
    product = functools.partial(
        lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=dtype
    )
    if x.shape[1] <= g.shape[1]:
        return product(x, g)
    return lax.optimization_barrier(product(g, x)).T  # without it the compiler would undo the swap


def _linear_backward(saved, g):
    x, w = saved
    (flat, matrix), g = _flat(x, w), g.reshape(-1, math.prod(w.shape[x.ndim - 2 :]))
    return jnp.dot(g, matrix.T).reshape(x.shape), weight_gradient(flat, g).reshape(w.shape)


# x is kept in the shape it came in, so that several maps of one x keep it once.
_linear.defvjp(lambda x, w: (_product(x, w), (x, w)), _linear_backward)


# SwiGLU


def gated(
    x: Float[Array, "M D"], gate: Float[Array, "D F"], up: Float[Array, "D F"], down: Float[Array, "F D"]
) -> Float[Array, "M D"]:
    """Returns (silu(x gate) * (x up)) down; of the hidden layer only x gate and x up are kept for the backward pass."""
    out: Any = _gated(x, gate, up, down)
    return out


@jax.custom_vjp
def _gated(x, gate, up, down):
    return _gated_forward(x, gate, up, down)[0]


def _gated_forward(x, gate, up, down):
    def chunk(x):
        a, b = jnp.dot(x, gate), jnp.dot(x, up)
        return jnp.dot(jax.nn.silu(a) * b, down), a, b

    out, a, b = _in_chunks(chunk, x)
    return out, (x, a, b, gate, up, down)


def _gated_backward(saved, g):
    x, a, b, gate, up, down = saved

    def chunk(g, a, b):
        share = jax.nn.sigmoid(a)
        s = a * share
        d_hidden = jnp.dot(g, down.T)
        d_a, d_b = d_hidden * b * (share + s * (1 - share)), d_hidden * s
        return jnp.dot(d_a, gate.T) + jnp.dot(d_b, up.T), s * b, d_a, d_b

    d_x, hidden, d_a, d_b = _in_chunks(chunk, g, a, b)
    return d_x, weight_gradient(x, d_a), weight_gradient(x, d_b), weight_gradient(hidden, g)


def _in_chunks(function, *arrays):
    """Returns the function of arrays [M ...], computed MLP_CHUNK rows at a time if M divides into them."""
    rows = arrays[0].shape[0]
    if rows <= MLP_CHUNK or rows % MLP_CHUNK:
        return function(*arrays)
    parts = tuple(x.reshape(-1, MLP_CHUNK, *x.shape[1:]) for x in arrays)
    outputs = lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), outputs)


_gated.defvjp(_gated_forward, _gated_backward)


# RMSNorm


def rms_norm(x: Float[Array, "M D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "M D"]:
    """Returns x / sqrt(mean(x^2) + eps) * scale, computed in float32."""
    out: Any = _norm(x, scale, eps)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _norm(x, scale, eps):
    return _norm_forward(x, scale, eps)[0]


def _norm_forward(x, scale, eps):
    x32 = x.astype(jnp.float32)
    r = lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * r * scale.astype(jnp.float32)).astype(x.dtype), (x, r, scale)


def _norm_backward(eps, saved, g):
    del eps
    x, r, scale = saved
    normed, g32 = x.astype(jnp.float32) * r, g.astype(jnp.float32)
    along = g32 * scale.astype(jnp.float32)
    d_x = r * (along - normed * jnp.mean(along * normed, axis=-1, keepdims=True))
    d_scale = jnp.dot(jnp.ones((1, x.shape[0])), g32 * normed)[0]  # a product: faster than a sum over rows
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


_norm.defvjp(_norm_forward, _norm_backward)


# The loss


def nll(
    hidden: Float[Array, "M D"], unembedding: Float[Array, "V D"], targets: Int[Array, "M"], chunk: int
) -> tuple[Float[Array, "M"], Float[Array, "M"], Bool[Array, "M"]]:
    """Returns (nll, log-normaliser, whether the target is the argmax) of each token, float32.

    Args:
      chunk: tokens in one matmul with TILE rows of the unembedding.
    """
    tiles = _tiles(unembedding)

    @jax.checkpoint
    def one(part):
        hidden, targets = part
        top, norm, target, ahead, _ = _scores(hidden, targets, tiles, unembedding.shape[0], keep=False)
        return norm - target, norm, (target >= top) & (target > ahead)

    parts, restore = _token_chunks(chunk, hidden, targets)
    return jax.tree.map(restore, lax.map(one, parts))


def nll_and_gradients(hidden, unembedding, targets, weights, *, z_loss, chunk: int, learns: bool):
    """Returns (nll [M], log-normaliser [M], gradient of hidden [M D], of the unembedding [V D] in float32 or None) of
    sum(weights * (nll + z_loss * log-normaliser^2)).

    The logits of a chunk of tokens are computed once, and kept until its gradient is computed.
    """
    tiles, num_words = _tiles(unembedding), unembedding.shape[0]

    def one(d_tiles, part):
        hidden, targets, weights = part
        _, norm, target, _, kept = _scores(hidden, targets, tiles, num_words, keep=True)
        scale = (weights * (1 + 2 * z_loss * norm))[:, None]

        def tile(carry, part):
            d_hidden, d_tiles = carry
            i, matrix, logits = part
            hit = i * TILE + jnp.arange(TILE) == targets[:, None]
            d_logits = scale * jnp.exp(logits - norm[:, None]) - jnp.where(hit, weights[:, None], 0.0)
            d_logits = d_logits.astype(hidden.dtype)
            d_hidden += jnp.dot(d_logits, matrix, preferred_element_type=jnp.float32)
            if d_tiles is not None:
                d_tiles = d_tiles.at[i].add(weight_gradient(d_logits, hidden, jnp.float32))
            return (d_hidden, d_tiles), None

        zeros = jnp.zeros(hidden.shape, jnp.float32)
        (d_hidden, d_tiles), _ = lax.scan(tile, (zeros, d_tiles), (jnp.arange(len(tiles)), tiles, kept))
        return d_tiles, (norm - target, norm, d_hidden.astype(hidden.dtype))

    parts, restore = _token_chunks(chunk, hidden, targets, weights)
    start = jnp.zeros(tiles.shape, jnp.float32) if learns else None
    d_tiles, outputs = lax.scan(one, start, parts)
    d_matrix = None if d_tiles is None else d_tiles.reshape(-1, d_tiles.shape[-1])[:num_words]
    return *jax.tree.map(restore, outputs), d_matrix


def _tiles(unembedding):
    """Returns the unembedding as [n TILE D], padded with zeros beyond the vocabulary."""
    padded = jnp.pad(unembedding, ((0, -unembedding.shape[0] % TILE), (0, 0)))
    return padded.reshape(-1, TILE, unembedding.shape[1])


def _scores(hidden, targets, tiles, num_words: int, *, keep: bool):
    """Returns (largest logit, log-normaliser, the target's logit, the largest logit of words before the target, all
    logits [n M TILE] or None) of each token. The fourth decides ties: of equal logits the first word is the argmax."""

    def tile(carry, part):
        top, total, target, ahead = carry
        i, matrix = part
        first = i * TILE
        logits = jnp.dot(hidden, matrix.T, preferred_element_type=jnp.float32)
        if num_words % TILE:
            logits = jnp.where(first + jnp.arange(TILE) < num_words, logits, LOWEST)
        new_top = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
        at = targets - first
        target_logit = jnp.take_along_axis(logits, jnp.clip(at, 0, TILE - 1)[:, None], axis=1)[:, 0]
        target = jnp.where((at >= 0) & (at < TILE), target_logit, target)
        before = jnp.where(jnp.arange(TILE) < at[:, None], logits, LOWEST).max(-1)
        return (new_top, total, target, jnp.maximum(ahead, before)), logits if keep else None

    rows = hidden.shape[0]
    start = (jnp.full(rows, LOWEST), jnp.zeros(rows), jnp.zeros(rows), jnp.full(rows, LOWEST))
    (top, total, target, ahead), kept = lax.scan(tile, start, (jnp.arange(len(tiles)), tiles))
    return top, top + jnp.log(total), target, ahead, kept


def _token_chunks(chunk: int, *arrays):
    """Returns the arrays [M ...] as [chunks, tokens, ...], padded with zeros, and the function that undoes it."""
    rows = arrays[0].shape[0]
    chunk = min(chunk, rows)

    def split(x):
        return jnp.pad(x, ((0, -rows % chunk),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])

    return tuple(map(split, arrays)), lambda x: x.reshape(-1, *x.shape[2:])[:rows]
