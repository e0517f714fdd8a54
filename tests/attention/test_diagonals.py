"""Strips of a table on blocks, and back, against indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import diagonals
from tests.close import close

spread = jax.jit(diagonals.spread, static_argnums=(1, 2))


@pytest.mark.parametrize(("keys", "queries"), [(256, 128), (128, 256), (128, 128), (16, 32), (8, 8)])
def test_a_strip_on_a_block_and_back(keys, queries):
    values = jax.random.normal(jax.random.key(0), (1, keys + queries))
    block = jax.random.normal(jax.random.key(1), (keys, queries))
    at = keys + np.arange(queries) - np.arange(keys)[:, None]
    assert np.array_equal(spread(values, keys, queries), values[0, at])
    want = np.zeros(keys + queries)
    np.add.at(want, at, np.float64(block))
    close(jax.jit(diagonals.gathered)(block)[0], want)


@pytest.mark.parametrize(("keys", "queries"), [(8, 16), (16, 8)])
def test_a_blocks_strip_of_a_padded_table(keys, queries):
    """Element [query key] of every block with a pair that is seen is the table's at query - key."""
    tokens = 40
    table = jnp.arange(2.0 * tokens).reshape(2, tokens)
    padded = diagonals.padded(table, keys, queries)
    assert np.array_equal(diagonals.unpadded(padded, keys, queries, tokens), table)
    for i in range(-(-tokens // queries)):
        for j in range(((i + 1) * queries - 1) // keys + 1):
            at = diagonals.strip(i, j, keys, queries)
            assert 0 <= at.start <= padded.shape[2] - at.size
            block = spread(padded[1, :, int(at.start) : int(at.start) + at.size], keys, queries)
            q, k = i * queries + np.arange(queries), j * keys + np.arange(keys)[:, None]
            seen = (q >= k) & (q < tokens)
            assert np.array_equal(np.asarray(block)[seen], np.asarray(table)[1, (q - k)[seen]])
