"""Expands a table by distance to a block of logits, and sums a block by distance, without gathers, which TPUs lack.

In a block [keys queries] all pairs on a diagonal have the same distance. So each row is a strip of the table, shifted
right by one place from row to row; shifting the rows back and adding them gives the sums by distance.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128  # of a vector register; slices of a block at multiples of it cost nothing


def padded(table: Float[Array, "N T"], keys: int, queries: int) -> Float[Array, "N 1 P"]:
    """Returns a table of T distances, padded to whole blocks of queries and, for masked pairs, before distance 0."""
    return jnp.pad(table, ((0, 0), (keys + queries, -table.shape[1] % queries)))[:, None]


def unpadded(table: Float[Array, "N 1 P"], keys: int, queries: int, tokens: int) -> Float[Array, "N T"]:
    """Returns the table that `padded` was given."""
    return table[:, 0, keys + queries :][:, :tokens]


def strip(i, j, keys: int, queries: int):
    """Returns the slice of a padded table that holds the distances between block i of queries and block j of keys.

    Its element `keys` is for the distance of the first query from the first key.
    """
    return pl.ds(pl.multiple_of((i + 1) * queries - j * keys, _size(keys, queries)), keys + queries)


def spread(values: Float[Array, "1 W"], keys: int, queries: int) -> Float[Array, "keys queries"]:
    """Returns the block whose element [a, c] is values[0, keys + c - a]."""
    size, rows = _size(keys, queries), values
    while rows.shape[0] < size:
        rows = jnp.concatenate([rows, pltpu.roll(rows, rows.shape[0], 1)])
    return jnp.concatenate([rows[:, keys - a : keys - a + queries] for a in range(0, keys, size)])


def gathered(block: Float[Array, "keys queries"]) -> Float[Array, "1 W"]:
    """Returns the sums of a block's elements [a, c] at keys + c - a: the transpose of `spread`."""
    (keys, queries), columns = block.shape, []
    size = _size(keys, queries)
    for at in range(0, keys + queries, size):
        starts = [(a, a + at - keys) for a in range(0, keys, size) if 0 <= a + at - keys < queries]
        parts = [block[a : a + size, c : c + size] for a, c in starts]
        columns.append(sum(parts[1:], parts[0]) if parts else jnp.zeros((size, size), block.dtype))
    rows = jnp.concatenate(columns, 1)
    while rows.shape[0] > 1:
        half = rows.shape[0] // 2
        rows = rows[:half] + pltpu.roll(rows[half:], keys + queries - half, 1)
    return rows


def _size(keys: int, queries: int) -> int:
    return min(LANES, keys, queries)
