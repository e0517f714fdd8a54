"""Intervals: the keys that each query sees in a band, as one contiguous run of indices in the row.

The causal mask, documents and the ranges of bands each leave a query a contiguous run of keys, and from query to query
neither end of the run ever decreases. So, whatever the method, a block of queries sees one run of key blocks, and a
block of keys is seen by one run of query blocks: that is all a kernel has to know to skip what is masked.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from giraffe_jax.attention.places import Place
from giraffe_jax.positions import CAUSAL, Band
from giraffe_jax.positions.encoding import whole


class Interval(NamedTuple):
    """Indices low <= key < high in the row, int32 [n B T] of n bands; both ends never decrease along T."""

    low: Any
    high: Any


class Runs(NamedTuple):
    """Runs of blocks, int32 [n B M]. Blocks in [start, stop) may hold pairs that are seen; those in
    [full_start, full_stop), a part of that run or empty, hold only such pairs and need no mask."""

    start: Any
    stop: Any
    full_start: Any
    full_stop: Any


def intervals(place: Place, bands: tuple[Band, ...]) -> Interval:
    """Returns the keys that each query of whole rows sees, in each band.

    Args:
      place: of the rows' tokens, from `place_of_rows`: each run of equal segments is a document.
      bands: as in `attend`; a band's `mask` is no interval and is left out.
    """
    i = place.within
    lows, highs = [], []
    for band in bands or (CAUSAL,):
        low, high = jnp.zeros_like(i), jnp.minimum(i + 1, whole(band.keys))
        for r in band.ranges:
            size = whole(r.chunk)
            # In chunks: limits may be 2^30, whose product with a chunk's size would overflow.
            most, chunk = jnp.int32(2**30) // size, i // size
            low_limit, high_limit = (jnp.clip(whole(x), -most, most) for x in (r.low, r.high))
            low = jnp.maximum(low, jnp.maximum(chunk - high_limit + 1, 0) * size)
            high = jnp.minimum(high, jnp.clip(chunk - low_limit + 1, 0, chunk + 1) * size)
        low = jnp.minimum(low, i + 1)
        lows.append(place.start + low)
        highs.append(place.start + jnp.maximum(low, high))
    return Interval(jnp.stack(lows), jnp.stack(highs))


def padded(seen: Interval, block: int) -> Interval:
    """Returns the intervals, padded to a multiple of `block` queries by empty ones at the end of the last interval."""
    low, high = seen
    ends = jnp.broadcast_to(high[..., -1:], (*high.shape[:-1], -high.shape[-1] % block))
    return Interval(jnp.concatenate([low, ends], -1), jnp.concatenate([high, ends], -1))


def runs_of_keys(seen: Interval, q_block: int, k_block: int) -> Runs:
    """Returns the blocks of keys that each block of queries sees; T is a multiple of `q_block`."""
    low, high = (x.reshape(*x.shape[:-1], -1, q_block) for x in seen)
    start, stop = low[..., 0] // k_block, -(-high[..., -1] // k_block)
    return _runs(start, stop, -(-low[..., -1] // k_block), high[..., 0] // k_block)


def runs_of_queries(seen: Interval, num_keys: int, q_block: int, k_block: int) -> Runs:
    """Returns the blocks of queries that see each block of keys; queries and keys divide into their blocks."""
    first = jnp.arange(0, num_keys, k_block, dtype=jnp.int32)

    def count(ends, keys, side):  # queries whose interval ends (or begins) before a key
        find = jax.vmap(jax.vmap(lambda x: jnp.searchsorted(x, keys, side=side)))
        return find(ends).astype(jnp.int32)

    start = count(seen.high, first, "right") // q_block
    stop = -(-count(seen.low, first + k_block, "left") // q_block)
    full_start = -(-count(seen.high, first + k_block, "left") // q_block)
    return _runs(start, stop, full_start, count(seen.low, first, "right") // q_block)


def _runs(start, stop, full_start, full_stop) -> Runs:
    stop = jnp.maximum(start, stop)
    empty = full_stop <= full_start
    return Runs(start, stop, jnp.where(empty, start, full_start), jnp.where(empty, start, full_stop))
