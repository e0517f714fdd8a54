"""Intervals against every pair of a row, by a band's definition in Python's whole numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import intervals as module
from giraffe_jax.attention import place_of_rows
from giraffe_jax.positions import Band, Range

intervals = jax.jit(module.intervals)
runs_of_keys = jax.jit(module.runs_of_keys, static_argnums=(1, 2))
runs_of_queries = jax.jit(module.runs_of_queries, static_argnums=(1, 2, 3))

T = 48
DOCUMENTS: list[list[int]] = [[48], [20, 28], [1, 5, 30, 12]]
BANDS: dict[str, tuple[Band, ...]] = {
    "none": (),
    "near, far": (Band(high=7), Band(low=7)),
    "sinks": (Band(high=7), Band(low=7, keys=3)),
    "chunks": (Band(high=1, chunk=6), Band(low=1, high=2, chunk=6), Band(low=2, chunk=6)),
    "a ring": (Band(low=3, high=9), Band(low=2, high=4, chunk=5, keys=11)),
    "empty": (Band(high=0), Band(low=5, high=5), Band(low=100), Band(keys=0)),
}
LOCAL = {"all": None, "window": (9.0, math.inf), "chunk": (math.inf, 10.0), "both": (4.0, 10.0)}


def seen(band: Band, local, i: int, j: int) -> bool:
    """Whether a query sees a key of its document, both by their index in it."""
    size = int(band.chunk)
    found = j <= i and band.low <= i // size - j // size < band.high and j < band.keys
    if local is not None:
        found = found and i - j < local[0] and (local[1] == math.inf or i // local[1] == j // local[1])
    return found


def limited(bands: tuple[Band, ...], local) -> tuple[Band, ...]:
    """The bands with a window and chunks besides."""
    if local is None:
        return bands
    return tuple(b.replace(also=(Range(high=local[0]), Range(high=1, chunk=local[1]))) for b in bands or (Band(),))


def rows(documents: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, start, index in the document) of each token."""
    document = np.repeat(np.arange(len(documents)), documents)
    start = np.repeat(np.cumsum([0, *documents[:-1]]), documents)
    return document, start, np.arange(T) - start


def pairs(band: Band, local, documents: list[int]) -> np.ndarray:
    """Whether each query of the row sees each key, [T T]."""
    document, _, within = rows(documents)
    found = np.zeros((T, T), bool)
    for i, j in np.ndindex(T, T):
        found[i, j] = document[i] == document[j] and seen(band, local, within[i], within[j])
    return found


CASES = [(b, w, d) for b in BANDS for w in LOCAL for d in range(len(DOCUMENTS))]


@pytest.mark.parametrize("name, local, documents", CASES)
def test_an_interval_holds_what_a_query_sees_and_nothing_else(name, local, documents):
    bands, documents = BANDS[name], DOCUMENTS[documents]
    segments = jnp.asarray(rows(documents)[0][None] + 1, jnp.int32)
    found = intervals(place_of_rows(segments, (1, T)), limited(bands, LOCAL[local]))
    keys = np.arange(T)
    for n, band in enumerate(bands or (Band(),)):
        low, high = np.asarray(found.low[n, 0]), np.asarray(found.high[n, 0])
        assert ((low[:, None] <= keys) & (keys < high[:, None]) == pairs(band, LOCAL[local], documents)).all()
        assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all() and (low <= high).all() and high[-1] <= T


@pytest.mark.parametrize("q_block, k_block", [(16, 8), (8, 16), (48, 4)])
@pytest.mark.parametrize("name", BANDS)
def test_runs_hold_every_pair_and_full_ones_only_pairs(name, q_block, k_block):
    for documents in DOCUMENTS:
        segments = jnp.asarray(rows(documents)[0][None] + 1, jnp.int32)
        found = intervals(place_of_rows(segments, (1, T)), limited(BANDS[name], LOCAL["window"]))
        of_keys = jax.tree.map(np.asarray, runs_of_keys(found, q_block, k_block))
        of_queries = jax.tree.map(np.asarray, runs_of_queries(found, T, q_block, k_block))
        for n, band in enumerate(BANDS[name] or (Band(),)):
            mask = pairs(band, LOCAL["window"], documents)
            blocks = mask.reshape(T // q_block, q_block, T // k_block, k_block).swapaxes(1, 2)
            for runs, some, every in (
                (of_keys, blocks.any((2, 3)), blocks.all((2, 3))),
                (of_queries, blocks.any((2, 3)).T, blocks.all((2, 3)).T),
            ):
                start, stop, full_start, full_stop = (x[n, 0][:, None] for x in runs)
                at = np.arange(len(some[0]))
                assert (some <= ((start <= at) & (at < stop))).all()
                assert (((full_start <= at) & (at < full_stop)) == every).all()
                assert ((start <= full_start) & (full_start <= full_stop) & (full_stop <= stop)).all()


def test_limits_that_are_infinite_do_not_overflow():
    bands = (Band(low=math.inf), Band(high=math.inf, chunk=2.0**20), Band(low=-math.inf, high=2.0**40))
    found = intervals(place_of_rows(None, (1, T)), limited(bands, (math.inf, math.inf)))
    assert (np.asarray(found.low) == 0).all()
    assert (np.asarray(found.high) == np.stack([np.zeros(T), np.arange(T) + 1, np.arange(T) + 1])[:, None]).all()
