"""Blockwise attention: online softmax over key blocks, O(T) memory forward and backward, on any backend.

Rabe and Staats, arXiv:2112.05682; Dao et al. (FlashAttention), arXiv:2205.14135. The backward pass is written by hand:
it keeps only the output and the log-sum-exp, and recomputes each block's probabilities.

Queries and keys are walked head by head, so that a block's logits are one matrix product of two plain matrices: the
rows are the block's tokens times the query heads that share a key head. Each band runs over the key blocks that
interval arithmetic on the corners of blocks does not prove empty, and only where it does not prove a block full is a
mask evaluated; the bands of a query meet in one online softmax. Queries and keys may be different tokens: what is known
of each token is data (`Place`), which is what attention over several devices needs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from giraffe_jax.attention.dense import MASKED, is_local
from giraffe_jax.positions import Band

ATTENTION_OUT, ATTENTION_LSE = "attention_out", "attention_lse"  # what a remat policy may keep, by name
BLOCK, MOST = 256, 1024  # tokens of a block of keys where the caller names none, and most of a block of queries
ROWS = 3072  # rows, tokens x heads, of a block of queries: measured on a CPU (LOG.md, 2026-11-24)


class Place(NamedTuple):
    """Where tokens are, [B T] each: a query sees keys of its segment whose order is not above its own."""

    order: Any  # index in the row
    segment: Any  # document
    within: Any  # index in the document: what bands and biases read


def index_in_document(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns the index of each token in its run of equal segments."""
    index = jnp.arange(segments.shape[1])
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - lax.cummax(jnp.where(starts, index, 0), axis=1)


def place_of_rows(segments: Int[Array, "B T"] | None, shape: tuple[int, int]) -> Place:
    """Returns the place of every token of whole rows; segments None: one document a row."""
    index = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    if segments is None:
        return Place(index, jnp.ones_like(index), index)
    return Place(index, segments, index_in_document(segments))


def blockwise(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    *,
    q_place: Place,
    k_place: Place,
    bands: tuple[Band, ...],
    bias,
    length,
    local: tuple | None = None,
    block_size: int | None = None,
) -> Float[Array, "B T N H"]:
    """Returns what `dense` does, never holding more than one block of logits."""
    sizes = (jnp.asarray(0.0 if length is None else length, jnp.float32), local)
    return _flash(bands, block_size, q, k, v, bias, (q_place, k_place), sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _flash(bands, block_size, q, k, v, bias, places, sizes):
    return forward(bands, block_size, q, k, v, bias, places, sizes)[0].astype(v.dtype)


def _flash_forward(bands, block_size, q, k, v, bias, places, sizes):
    out, lse = forward(bands, block_size, q, k, v, bias, places, sizes)
    out = checkpoint_name(out.astype(v.dtype), ATTENTION_OUT)
    lse = checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, bias, places, sizes, out, lse)


def _flash_backward(bands, block_size, saved, d_out):
    q, k, v, bias, places, sizes, out, lse = saved
    inputs = (q, k, v, bias, places, sizes)
    d_q, d_k, d_v, d_bias = backward(bands, block_size, *inputs, out, lse, d_out)
    cast = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
    return (
        cast(d_q, q),
        cast(d_k, k),
        d_v.astype(v.dtype),
        cast(d_bias, bias),
        None,
        jax.tree.map(jnp.zeros_like, sizes),
    )


_flash.defvjp(_flash_forward, _flash_backward)


def forward(bands, block_size, q, k, v, bias, places, sizes):
    """Returns (out [B T N H], log-sum-exp [B T N]) in float32; a query that sees no key has 0 and MASKED.

    Args:
      bands: static; q and k have one array for each.
      block_size: tokens of a block of keys; None takes BLOCK.
      q, k, v, bias: as in `blockwise`.
      places: (q_place, k_place).
      sizes: (length, local).
    """
    walk = _walk(bands, block_size, q, k, v, bias, places, sizes)
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
    return _from_query_blocks(out, q[0].shape), _from_query_blocks(lse, q[0].shape[:-1])


def backward(bands, block_size, q, k, v, bias, places, sizes, out, lse, d_out):
    """Returns the gradients of q, k, v and bias in float32, given that of `out`; out and lse may have seen more keys
    than these."""
    walk = _walk(bands, block_size, q, k, v, bias, places, sizes)
    dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    cut = functools.partial(_to_query_blocks, num_kv_heads=v.shape[2], block=walk.block)
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

            d_q, *carry = walk.over_keys(row, i, update, ((zero_q,) * len(bands), *carry))
            return tuple(carry), d_q

        carry, d_q = lax.scan(query_block, ((zero_k,) * len(bands), zero_k, zero_bias), walk.query_blocks)
        return d_q, *carry

    d_q, d_k, d_v, d_bias = walk.over_heads(one_head)
    scale = q[0].shape[-1] ** -0.5
    d_q = tuple(_from_query_blocks(x, q[0].shape) * scale for x in d_q)
    d_k = tuple(_from_key_blocks(x, v.shape) for x in d_k)
    return d_q, d_k, _from_key_blocks(d_v, v.shape), jax.tree.map(lambda x: x.sum((0, 1)), d_bias)


def _replace(values: tuple, at: int, value) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


# Blocks of queries are matrices: [B K M rows H] for M blocks whose rows are tokens x the G heads that share a key head,
# tokens first. Blocks of keys: [B K M tokens H].


def _to_query_blocks(x: jax.Array, num_kv_heads: int, block: int) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(*x.shape[:2], num_kv_heads, -1, *x.shape[3:])
    x = jnp.moveaxis(x, 2, 1)  # [B K T G ...]
    return x.reshape(*x.shape[:2], -1, block * x.shape[3], *x.shape[4:])


def _from_query_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    batch, num_tokens, num_heads = shape[:3]
    x = x.reshape(batch, x.shape[1], -1, num_heads // x.shape[1], *shape[3:])
    return jnp.moveaxis(x, 1, 2)[:, :num_tokens].reshape(shape)


def _to_key_blocks(x_BSKH: jax.Array, block: int) -> jax.Array:
    x = jnp.pad(x_BSKH, ((0, 0), (0, -x_BSKH.shape[1] % block), (0, 0), (0, 0)))
    return jnp.moveaxis(x, 2, 1).reshape(x.shape[0], x.shape[2], -1, block, x.shape[3])


def _from_key_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    x = x.swapaxes(-1, -2).reshape(*x.shape[:2], -1, shape[-1])
    return jnp.moveaxis(x, 1, 2)[:, : shape[1]]


def _place_blocks(place: Place, block: int, *, order: int, segment: int) -> Place:
    """Returns the place of each block's tokens, [B M block]; what is padded is nobody's: no key is below its order and
    none is of its segment."""
    padding = ((0, 0), (0, -place.order.shape[1] % block))
    nobody = [jnp.pad(x, padding, constant_values=c) for x, c in ((place.order, order), (place.segment, segment))]
    within = jnp.pad(place.within, padding, mode="edge")  # which leaves the block's corners where they are
    return Place(*(x.reshape(x.shape[0], -1, block) for x in (*nobody, within)))


class _Walk(NamedTuple):
    """Everything in blocks, and which blocks of keys each block of queries has to visit."""

    bands: tuple[Band, ...]
    q: tuple[jax.Array, ...]  # scaled
    k: tuple[jax.Array, ...]
    v: jax.Array
    bias: Any
    places: tuple[Place, Place]
    sizes: tuple
    visits: tuple  # [bands, B, M] each: first and last visited block of keys, first and last full block of these
    block: int  # tokens of a block of queries

    @property
    def query_blocks(self):
        return jnp.arange(self.q[0].shape[2])

    def over_heads(self, function):
        """Returns function(row, head) of all rows and key heads: in turn on a CPU, at once elsewhere."""
        each = lax.map if jax.default_backend() == "cpu" else lambda f, xs: jax.vmap(f)(xs)
        heads = jnp.arange(self.v.shape[1])
        return each(lambda row: each(lambda head: function(row, head), heads), jnp.arange(self.v.shape[0]))

    def over_keys(self, row, i, update, carry):
        """Returns the carry after update(carry, band, block of keys, masked) for all that query block i has to see."""
        for b in range(len(self.bands)):
            start, stop, full_start, full_stop = (x[b, row, i] for x in self.visits)
            before, full = full_start - start, full_stop - full_start

            def masked(t, carry, b=b, start=start, before=before, full=full):
                return update(carry, b, start + t + jnp.where(t < before, 0, full), True)

            carry = lax.fori_loop(full_start, full_stop, lambda j, carry, b=b: update(carry, b, j, False), carry)
            carry = lax.fori_loop(0, stop - start - full, masked, carry)
        return carry

    def logits(self, row, head, b, i, j, masked: bool):
        """Returns float32 logits of one block pair in one band, and the mask that they have been given (or None)."""
        logits = jnp.dot(self.q[b][row, head, i], self.k[b][row, head, j].T, preferred_element_type=jnp.float32)
        if self.bias is not None:
            logits += self._bias_block(self.bias, row, head, i, j)
        if not masked:
            return logits, None
        mask = jnp.repeat(self._mask(row, b, i, j), logits.shape[0] // self.block, axis=0)
        return jnp.where(mask, logits, MASKED), mask

    def _pair(self, row, i, j):
        """Returns the places of one block pair, [t 1] and [1 s]."""
        q_place, k_place = self.places
        return Place(*(x[row, i][:, None] for x in q_place)), Place(*(x[row, j][None, :] for x in k_place))

    def _mask(self, row, b, i, j):
        q_at, k_at = self._pair(row, i, j)
        length, local = self.sizes
        mask = (q_at.order >= k_at.order) & (q_at.segment == k_at.segment)
        mask &= self.bands[b].mask(q_at.within, k_at.within, length)
        return mask if local is None else mask & is_local(q_at.within, k_at.within, *local)

    def _bias_block(self, bias, row, head, i, j):
        q_at, k_at = self._pair(row, i, j)
        group = self.q[0].shape[3] // self.block
        num_heads = group * self.v.shape[1]
        block = bias(q_at.within[None, None], k_at.within[None, None], num_heads)
        shape = (num_heads, self.block, self.v.shape[3])
        block = jnp.broadcast_to(block.reshape(block.shape[-3:]), shape)
        block = lax.dynamic_slice_in_dim(block, head * group, group)
        return jnp.moveaxis(block, 0, 1).reshape(-1, shape[2])

    def pull_bias(self, row, head, i, j, d_logits):
        """Returns the gradient of the bias's parameters."""
        return jax.vjp(lambda bias: self._bias_block(bias, row, head, i, j), self.bias)[1](d_logits)[0]


def _walk(bands, block_size, q, k, v, bias, places, sizes) -> _Walk:
    block_size = block_size or BLOCK
    num_kv_heads, group = v.shape[2], q[0].shape[2] // v.shape[2]
    k_block = min(block_size, v.shape[1])
    # A multiple of the keys' block, so that the diagonal cuts as few blocks as may be.
    multiple = max(1, min(ROWS // group, MOST) // block_size)
    q_block = min(block_size * multiple, q[0].shape[1])
    scale = q[0].shape[-1] ** -0.5
    q_blocks = tuple(_to_query_blocks(x * jnp.asarray(scale, x.dtype), num_kv_heads, q_block) for x in q)
    q_place = _place_blocks(places[0], q_block, order=-1, segment=-1)
    k_place = _place_blocks(places[1], k_block, order=jnp.iinfo(jnp.int32).max, segment=-2)
    k_blocks, v_blocks = tuple(_to_key_blocks(x, k_block) for x in k), _to_key_blocks(v, k_block)
    visits = _visits(bands, q_place, k_place, sizes)
    return _Walk(bands, q_blocks, k_blocks, v_blocks, bias, (q_place, k_place), sizes, visits, q_block)


def _visits(bands, q_place: Place, k_place: Place, sizes):
    """Returns for each band, row and block of queries: the first and last (exclusive) block of keys in which it can
    hold for any pair, and of those the first run in which it holds for every pair, by interval arithmetic."""

    def corners(x):
        return x.min(-1), x.max(-1)

    q_low, q_high = zip(*((low[:, :, None], high[:, :, None]) for low, high in map(corners, q_place)), strict=True)
    k_low, k_high = zip(*((low[:, None, :], high[:, None, :]) for low, high in map(corners, k_place)), strict=True)
    (q0, sq0, i0), (q1, sq1, i1) = q_low, q_high
    (k0, sk0, j0), (k1, sk1, j1) = k_low, k_high
    some = (q1 >= k0) & (sq1 >= sk0) & (sk1 >= sq0)
    every = (q0 >= k1) & (sq0 == sk1) & (sq1 == sk0) & (sq0 == sq1)
    length, local = sizes
    if local is not None:
        window, chunk = local
        first, last = jnp.floor(i0 / chunk), jnp.floor(i1 / chunk)
        some &= (i0 - j1 < window) & (first <= jnp.floor(j1 / chunk)) & (jnp.floor(j0 / chunk) <= last)
        every &= (i1 - j0 < window) & (first == jnp.floor(j1 / chunk)) & (jnp.floor(j0 / chunk) == last)
    found = []
    for band in bands:
        here, whole = some, every
        if hasattr(band.mask, "blocks"):
            any_pair, all_pairs = band.mask.blocks((i0, i1), (j0, j1), length)
            here, whole = some & any_pair, every & all_pairs
        else:  # a mask that says nothing of its blocks is evaluated in each
            whole = jnp.zeros_like(every)
        num_blocks = here.shape[-1]
        start, stop = jnp.argmax(here, -1), num_blocks - jnp.argmax(here[..., ::-1], -1)
        stop = jnp.where(here.any(-1), stop, start)
        full_start = jnp.argmax(whole, -1)
        after = ~whole & (jnp.arange(num_blocks) >= full_start[..., None])
        full_stop = jnp.where(after.any(-1), jnp.argmax(after, -1), num_blocks)
        empty = ~whole.any(-1)
        found.append((start, stop, jnp.where(empty, start, full_start), jnp.where(empty, start, full_stop)))
    return tuple(jnp.stack(x) for x in zip(*found, strict=True))
