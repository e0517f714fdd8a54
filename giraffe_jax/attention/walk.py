"""The walk of blockwise attention: rows in blocks, which blocks of keys a block of queries visits, and their masks.

Each key head is computed on its own, so that a block's logits are one matmul of two matrices, whose rows are the
block's tokens times the query heads that share the key head. From the smallest and largest indices in blocks, interval
arithmetic finds the key blocks that are masked as a whole, which a band skips, and those without any masked pair, for
which it evaluates no mask.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.places import Place
from giraffe_jax.ops.choose import choose
from giraffe_jax.positions import CAUSAL, Band, Range
from giraffe_jax.positions.encoding import whole

BLOCK, MOST = 256, 1024  # tokens of a block of keys by default, and of a block of queries at most
ROWS = 1536  # rows, tokens x heads, of a block of queries: measured on a CPU (LOG.md, 2026-11-26)

# Blocks of queries are matrices: [B K M rows H] for M blocks whose rows are tokens x the G heads that share a key head,
# tokens first. Blocks of keys: [B K M tokens H].


def to_query_blocks(x: jax.Array, num_kv_heads: int, block: int) -> jax.Array:
    """Returns [B T N ...] as blocks of queries of `block` tokens, padded with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(*x.shape[:2], num_kv_heads, -1, *x.shape[3:])
    x = jnp.moveaxis(x, 2, 1)  # [B K T G ...]
    return x.reshape(*x.shape[:2], -1, block * x.shape[3], *x.shape[4:])


def from_query_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns blocks of queries as `shape`, [B T N ...], without the padding."""
    batch, num_tokens, num_heads = shape[:3]
    x = x.reshape(batch, x.shape[1], -1, num_heads // x.shape[1], *shape[3:])
    return jnp.moveaxis(x, 1, 2)[:, :num_tokens].reshape(shape)


def to_key_blocks(x_BSKH: jax.Array, block: int) -> jax.Array:
    """Returns [B S K H] as blocks of keys of `block` tokens, padded with zeros."""
    x = jnp.pad(x_BSKH, ((0, 0), (0, -x_BSKH.shape[1] % block), (0, 0), (0, 0)))
    return jnp.moveaxis(x, 2, 1).reshape(x.shape[0], x.shape[2], -1, block, x.shape[3])


def from_key_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns transposed blocks of keys, [B K M H tokens], as `shape`, [B S K H], without the padding."""
    x = x.swapaxes(-1, -2).reshape(*x.shape[:2], -1, shape[-1])
    return jnp.moveaxis(x, 1, 2)[:, : shape[1]]


class Marks(NamedTuple):
    """What masks compare, [B M block] each. A pair is seen if the query's index is not less than the key's, the
    segments are equal, in each range low <= query's chunk - key's chunk < high, and the key's `within` is below the
    band's `keys`."""

    index: Any
    segment: Any
    within: Any
    chunks: tuple  # for each band and each of its ranges, the token's chunk: within // its chunk


def _marks(place: Place, ranges, block: int, *, index: int, segment: int) -> Marks:
    """Returns the marks of each block's tokens. Padding gets the given index and segment, by which it is masked. Chunks
    are computed here, once: a division for each pair would cost more than its part of the matmuls."""
    padding = ((0, 0), (0, -place.index.shape[1] % block))

    def cut(x):
        return x.reshape(x.shape[0], -1, block)

    def pad(x, value):
        return cut(jnp.pad(x, padding, constant_values=value))

    within = jnp.pad(place.within, padding, mode="edge")  # smallest and largest values stay
    chunks = tuple(tuple(cut(within // r.chunk) for r in band) for band in ranges)
    return Marks(pad(place.index, index), pad(place.segment, segment), cut(within), chunks)


class Walk(NamedTuple):
    """Queries, keys and values in blocks, and which blocks of keys each block of queries has to visit."""

    bands: tuple[Band, ...]
    ranges: tuple[tuple[Range, ...], ...]  # of each band, in whole numbers
    q: tuple[jax.Array, ...]  # scaled
    k: tuple[jax.Array, ...]
    v: jax.Array
    bias: Any
    marks: tuple[Marks, Marks]  # of queries and of keys
    visits: tuple  # [bands, B, M] each: start and stop of the visited key blocks, and of those without a mask
    block: int  # tokens of a block of queries

    @property
    def query_blocks(self):
        """Indices of the blocks of queries, [M]."""
        return jnp.arange(self.q[0].shape[2])

    def over_heads(self, function):
        """Returns function(row, head) for all rows and key heads, in a loop or by vmap (ops/choose.py: heads)."""
        map_over = lax.map if choose().heads == "in turn" else lambda f, xs: jax.vmap(f)(xs)
        heads = jnp.arange(self.v.shape[1])
        return map_over(lambda row: map_over(lambda head: function(row, head), heads), jnp.arange(self.v.shape[0]))

    def over_keys(self, row, i, update, carry):
        """Returns the carry after update(carry, band, key block, masked) for all key blocks that block i visits."""
        for b in range(len(self.q)):
            start, stop, full_start, full_stop = (x[b, row, i] for x in self.visits)
            before, full = full_start - start, full_stop - full_start

            def masked(t, carry, b=b, start=start, before=before, full=full):
                return update(carry, b, start + t + jnp.where(t < before, 0, full), True)

            carry = lax.fori_loop(full_start, full_stop, lambda j, carry, b=b: update(carry, b, j, False), carry)
            carry = lax.fori_loop(0, stop - start - full, masked, carry)
        return carry

    def logits(self, row, head, b, i, j, masked: bool):
        """Returns float32 logits of one block pair in one band, and the mask that was applied to them (or None)."""
        logits = jnp.dot(self.q[b][row, head, i], self.k[b][row, head, j].T, preferred_element_type=jnp.float32)
        if self.bias is not None:
            logits += self._bias_block(self.bias, row, head, i, j)
        if not masked:
            return logits, None
        mask = jnp.repeat(self._mask(row, b, i, j), logits.shape[0] // self.block, axis=0)
        return jnp.where(mask, logits, MASKED), mask

    def _mask(self, row, b: int, i, j):
        """Returns whether each pair of a block pair is seen in a band, [t s]."""
        q_at, k_at = jax.tree.map(lambda x: x[row, i][:, None], self.marks[0]), self._keys(row, j)
        mask = (q_at.index >= k_at.index) & (q_at.segment == k_at.segment)
        for r, q_chunk, k_chunk in zip(self.ranges[b], q_at.chunks[b], k_at.chunks[b], strict=True):
            apart = q_chunk - k_chunk
            mask &= (apart >= r.low) & (apart < r.high)
        if self.bands:
            band = self.bands[b]
            mask &= k_at.within < whole(band.keys)
            mask = mask if band.mask is None else mask & band.mask(q_at.within, k_at.within)
        return mask

    def _keys(self, row, j) -> Marks:
        return jax.tree.map(lambda x: x[row, j][None, :], self.marks[1])

    def _bias_block(self, bias, row, head, i, j):
        i_t1, j_1s = self.marks[0].within[row, i][:, None], self.marks[1].within[row, j][None, :]
        group = self.q[0].shape[3] // self.block
        num_heads = group * self.v.shape[1]
        block = bias(i_t1[None, None], j_1s[None, None], num_heads)
        shape = (num_heads, self.block, self.v.shape[3])
        block = jnp.broadcast_to(block.reshape(block.shape[-3:]), shape)
        block = lax.dynamic_slice_in_dim(block, head * group, group)
        return jnp.moveaxis(block, 0, 1).reshape(-1, shape[2])

    def pull_bias(self, row, head, i, j, d_logits):
        """Returns the gradient of the bias's parameters, given that of one block pair's logits."""
        return jax.vjp(lambda bias: self._bias_block(bias, row, head, i, j), self.bias)[1](d_logits)[0]


def make_walk(block_size, q, k, v, bias, places, bands) -> Walk:
    """Returns the walk of `blockwise.forward`'s arguments."""
    block_size = block_size or BLOCK
    num_kv_heads, group = v.shape[2], q[0].shape[2] // v.shape[2]
    k_block = min(block_size, v.shape[1])
    # A multiple of the keys' block, so that the causal diagonal cuts as few blocks as possible.
    multiple = max(1, min(ROWS // group, MOST) // block_size)
    q_block = min(block_size * multiple, q[0].shape[1])
    scale = q[0].shape[-1] ** -0.5
    q_blocks = tuple(to_query_blocks(x * jnp.asarray(scale, x.dtype), num_kv_heads, q_block) for x in q)
    k_blocks, v_blocks = tuple(to_key_blocks(x, k_block) for x in k), to_key_blocks(v, k_block)
    ranges = tuple(jax.tree.map(whole, band.ranges) for band in bands) or ((),)  # without bands there are none
    q_marks = _marks(places[0], ranges, q_block, index=-1, segment=-1)
    k_marks = _marks(places[1], ranges, k_block, index=jnp.iinfo(jnp.int32).max, segment=-2)
    visits = _visits(bands, ranges, q_marks, k_marks)
    return Walk(bands, ranges, q_blocks, k_blocks, v_blocks, bias, (q_marks, k_marks), visits, q_block)


def _visits(bands, ranges, q_marks: Marks, k_marks: Marks):
    """Returns for each band, row and block of queries: start and stop of the key blocks in which any pair may be seen,
    and start and stop of the first run of them in which every pair is, by interval arithmetic."""

    def corners(marks: Marks, axis: int) -> tuple[Marks, Marks]:
        lowest = jax.tree.map(lambda x: jnp.expand_dims(x.min(-1), axis), marks)
        return lowest, jax.tree.map(lambda x: jnp.expand_dims(x.max(-1), axis), marks)

    (q0, q1), (k0, k1) = corners(q_marks, 2), corners(k_marks, 1)
    some = (q1.index >= k0.index) & (q1.segment >= k0.segment) & (k1.segment >= q0.segment)
    every = (q0.index >= k1.index) & (q0.segment == q1.segment)
    every &= (q0.segment == k1.segment) & (q1.segment == k0.segment)
    visits = []
    for b, band in enumerate(bands or (CAUSAL,)):
        any_pairs, all_pairs = some, every
        for n, r in enumerate(ranges[b]):
            nearest, farthest = q0.chunks[b][n] - k1.chunks[b][n], q1.chunks[b][n] - k0.chunks[b][n]
            any_pairs &= (farthest >= r.low) & (nearest < r.high)
            all_pairs &= (nearest >= r.low) & (farthest < r.high)
        if bands:
            keys = whole(band.keys)
            any_pairs &= k0.within < keys
            all_pairs &= k1.within < keys
            all_pairs = all_pairs if band.mask is None else jnp.zeros_like(all_pairs)
        num_blocks = any_pairs.shape[-1]
        start, stop = jnp.argmax(any_pairs, -1), num_blocks - jnp.argmax(any_pairs[..., ::-1], -1)
        stop = jnp.where(any_pairs.any(-1), stop, start)
        full_start = jnp.argmax(all_pairs, -1)
        after = ~all_pairs & (jnp.arange(num_blocks) >= full_start[..., None])
        full_stop = jnp.where(after.any(-1), jnp.argmax(after, -1), num_blocks)
        empty = ~all_pairs.any(-1)
        visits.append((start, stop, jnp.where(empty, start, full_start), jnp.where(empty, start, full_stop)))
    return tuple(jnp.stack(x) for x in zip(*visits, strict=True))
