"""Attention against float64 numpy written from the definition, and blockwise against dense, gradients included."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import Place, attend, merge, place_of_rows
from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.walk import make_walk
from giraffe_jax.positions import Band, Range
from tests.close import close

B, T, N, K, H = 2, 37, 4, 2, 8


@pytest.fixture(autouse=True)
def several_blocks_of_queries(monkeypatch):
    """37 tokens would be one block of queries, and most of what is skipped lies between two."""
    monkeypatch.setattr("giraffe_jax.attention.walk.ROWS", 16 * N // K)


def inputs(num_bands=1, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2 * num_bands + 1)
    q = tuple(jax.random.normal(k, (B, T, N, H)) for k in keys[:num_bands])
    k = tuple(jax.random.normal(k, (B, T, K, H)) for k in keys[num_bands : 2 * num_bands])
    return q, k, jax.random.normal(keys[-1], (B, T, K, H))


SEGMENTS = jnp.array([[1] * 20 + [2] * 17, [1] * 5 + [2] * 30 + [0] * 2], jnp.int32)


def attention(q, k, v, segments=None, **settings):
    """Returns the attention of whole rows to themselves, without its log-sum-exp."""
    place = place_of_rows(segments, v.shape[:2])
    return attend(q, k, v, q_place=place, k_place=place, **settings)[0]


def by_hand(q, k, v, segments=None, masks=None, bias=None):
    """softmax(q k / sqrt(H)) v, one query at a time, in float64."""
    q, k, v = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (q, k, v))
    out = np.zeros((B, T, N, H))
    for b, i, n in np.ndindex(B, T, N):
        logits, values = [], []
        for j in range(i + 1):
            if segments is not None and segments[b, i] != segments[b, j]:
                continue
            for band in range(len(q)):
                if masks is None or masks[band](i, j):
                    bonus = 0.0 if bias is None else bias(i, j, n)
                    logits.append(q[band][b, i, n] @ k[band][b, j, n // (N // K)] / math.sqrt(H) + bonus)
                    values.append(v[b, j, n // (N // K)])
        weights = np.exp(np.array(logits) - max(logits))
        out[b, i, n] = (weights / weights.sum()) @ np.array(values)
    return out


IMPLEMENTATIONS = [("dense", 512), ("blockwise", 8), ("blockwise", 16), ("blockwise", 64)]


@pytest.mark.parametrize(("implementation", "block_size"), IMPLEMENTATIONS)
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
def test_equals_the_definition(implementation, block_size, segments):
    q, k, v = inputs()
    got = attention(q, k, v, segments, implementation=implementation, block_size=block_size)
    want = by_hand(q, k, v, None if segments is None else np.asarray(segments))
    close(got, want)


NEAR, FAR = Band(high=5), Band(low=5, high=20)


def slope_bias(i, j, num_heads):
    slopes = 2.0 ** -jnp.arange(1, num_heads + 1, dtype=jnp.float32)
    return -slopes[:, None, None] * (i - j).astype(jnp.float32)


@pytest.mark.parametrize(("implementation", "block_size"), IMPLEMENTATIONS)
def test_bands_and_bias(implementation, block_size):
    q, k, v = inputs(num_bands=2)
    settings = dict(
        implementation=implementation, block_size=block_size, bands=(NEAR, FAR), bias=jax.tree_util.Partial(slope_bias)
    )
    got = attention(q, k, v, SEGMENTS, **settings)
    masks = (lambda i, j: i - j < 5, lambda i, j: 5 <= i - j < 20)
    want = by_hand(q, k, v, np.asarray(SEGMENTS), masks, lambda i, j, n: -(2.0 ** -(n + 1)) * (i - j))
    close(got, want)


@pytest.mark.parametrize("bands", [(), (NEAR, FAR)], ids=["causal", "two bands"])
def test_gradients_of_blockwise_are_those_of_dense(bands):
    q, k, v = inputs(num_bands=max(1, len(bands)))
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H))

    def loss(q, k, v, **settings):
        return jnp.sum(weights * attention(q, k, v, SEGMENTS, bands=bands, **settings))

    want = jax.grad(loss, (0, 1, 2))(q, k, v, implementation="dense")
    got = jax.grad(loss, (0, 1, 2))(q, k, v, implementation="blockwise", block_size=16)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, ulps=1024)


def test_bands_count_from_the_start_of_each_document():
    q, k, v = inputs()
    chunked = (Band(high=1, chunk=6),)
    start = np.where(np.asarray(SEGMENTS) == 1, 0, np.argmax(np.asarray(SEGMENTS) == 2, axis=1)[:, None])
    start[1, 35:] = 35
    for implementation, block_size in IMPLEMENTATIONS:
        settings = dict(implementation=implementation, block_size=block_size)
        got = np.asarray(attention(q, k, v, SEGMENTS, bands=chunked, **settings))
        for b, first in ((0, 0), (0, 20), (1, 5)):
            masks = (lambda i, j, first=first: (i - first) // 6 == (j - first) // 6,)
            want = by_hand(q, k, v, start, masks)
            here = start[b] == first
            close(got[b, here], want[b, here])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slope:
    slope: jax.Array

    def __call__(self, i, j, num_heads):
        return -(self.slope * jnp.arange(1, num_heads + 1))[:, None, None] * jnp.log1p(jnp.abs(i - j))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
def test_gradients_of_a_bias_are_those_of_dense(segments):
    q, k, v = inputs(num_bands=2)
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H))

    def loss(bias, **settings):
        settings |= dict(bands=(NEAR, FAR), bias=bias)
        return jnp.sum(weights * attention(q, k, v, segments, **settings))

    want = jax.grad(loss)(Slope(jnp.float32(0.3)), implementation="dense").slope
    got = jax.grad(loss)(Slope(jnp.float32(0.3)), implementation="blockwise", block_size=8).slope
    step = 1e-2
    slope = [loss(Slope(jnp.float32(0.3 + d)), implementation="dense") for d in (step, -step)]
    np.testing.assert_allclose(want, (slope[0] - slope[1]) / (2 * step), rtol=1e-2)
    close(got, want, ulps=1024)


def test_blockwise_memory_grows_with_tokens_not_with_their_square():
    """The compiler's own figure for temporaries, forward and backward."""

    def temporaries(tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)

        def loss(q, k, v):
            return jnp.sum(attention((q,), (k,), v, implementation="blockwise", block_size=64))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(4096) < 2.2 * temporaries(2048)
    assert temporaries(4096) < 4096 * 4096  # a quarter of one float32 logits tensor of one head


def test_cached_queries_see_the_slots_up_to_their_own():
    q, k, v = inputs()
    full = attention(q, k, v, implementation="dense")
    index = jnp.array([[20], [36]])
    picked = jnp.take_along_axis(q[0], index[:, :, None, None], axis=1)
    place = Place(index, jnp.ones_like(index), jnp.zeros_like(index))
    got, _ = attend((picked,), k, v, q_place=place, k_place=place_of_rows(None, (B, T)))
    close(got, jnp.take_along_axis(full, index[:, :, None, None], axis=1))


def shuffled(place, q, k, v, key):
    """Queries and keys in two orders of their own, keys without some that they had."""
    q_order, k_order = (jax.random.permutation(x, T) for x in jax.random.split(key))
    k_order = k_order[: T - 6]
    pick = lambda x, order: jax.tree.map(lambda x: x[:, order], x)  # noqa: E731
    return pick(q, q_order), pick(k, k_order), pick(v, k_order), pick(place, q_order), pick(place, k_order)


WINDOW, CHUNK = Range(high=20), Range(high=1, chunk=8)
CASES: dict[str, tuple[Band, ...]] = {
    "plain": (),
    "a window of all": (Band(also=(Range(high=11),)),),
    "chunks of all": (Band(also=(CHUNK,)),),
    "a window and chunks of all": (Band(also=(Range(high=5), CHUNK)),),
    "one window": (Band(high=7),),
    "a hole": (Band(low=4, high=9),),
    "window and sinks": (Band(high=6), Band(low=6, keys=3)),
    "chunks": (
        Band(high=1, chunk=9, also=(WINDOW,)), Band(low=1, high=2, chunk=9, also=(WINDOW,)),
        Band(low=2, chunk=9, also=(WINDOW,)),
    ),
}  # fmt: skip


@functools.partial(jax.jit, static_argnames="implementation")
def with_gradients(q, k, v, q_place, k_place, bands, d_out, d_lse, implementation):
    def both(q, k, v, slope):
        settings = dict(q_place=q_place, k_place=k_place, bands=bands, block_size=8)
        return attend(q, k, v, bias=Slope(slope), implementation=implementation, **settings)

    (out, lse), back = jax.vjp(both, q, k, v, jnp.float32(0.3))
    return (out, lse), back((d_out, jnp.where(lse > MASKED, d_lse, 0.0)))


@pytest.mark.parametrize("name", CASES)
def test_blockwise_is_dense_in_any_order_of_tokens_with_every_gradient(name):
    """Random places, packed documents, queries that see nothing, grouped heads, a learned bias; outputs, log-sum-exps,
    and the gradients of all that has one under cotangents of both."""
    bands = CASES[name]
    q, k, v = inputs(num_bands=max(1, len(bands)))
    q, k, v, q_place, k_place = shuffled(place_of_rows(SEGMENTS, (B, T)), q, k, v, jax.random.key(3))
    keys = jax.random.split(jax.random.key(9))
    d_out, d_lse = jax.random.normal(keys[0], (B, T, N, H)), jax.random.normal(keys[1], (B, T, N))

    inputs_of_both = (q, k, v, q_place, k_place, jax.tree.map(jnp.float32, bands), d_out, d_lse)
    (out, lse), grads = with_gradients(*inputs_of_both, implementation="blockwise")
    (want_out, want_lse), want = with_gradients(*inputs_of_both, implementation="dense")
    empty = np.asarray(want_lse == MASKED)
    assert empty.any() and not empty.all()  # keys were left out, so that some queries see none
    assert (np.asarray(lse == MASKED) == empty).all() and not np.asarray(out)[empty].any()
    close(out, want_out)
    close(np.where(empty, 0, lse), np.where(empty, 0, want_lse))
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        close(got, expected, ulps=84)  # 1e-5 of the largest


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_parts_of_the_keys_merge_to_the_whole_with_their_gradients(implementation):
    """What rings, caches and bands do: attention over disjoint parts of the keys, one of them not seen by most."""
    q, k, v = inputs()
    place = place_of_rows(SEGMENTS, (B, T))
    parts = [slice(0, 9), slice(9, 30), slice(30, T)]
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H))

    def cut(q, k, v, part):
        k_place = jax.tree.map(lambda x: x[:, part], place)
        settings = dict(q_place=place, k_place=k_place, implementation=implementation, block_size=8)
        return attend(q, (k[0][:, part],), v[:, part], **settings)

    def whole(q, k, v):
        out = attention(q, k, v, SEGMENTS, implementation="dense")
        return jnp.sum(weights * out), out

    def merged(q, k, v):
        out, _ = merge([cut(q, k, v, part) for part in parts])
        return jnp.sum(weights * out), out

    (want, out), (got, merged_out) = (jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(q, k, v) for f in (whole, merged))
    close(merged_out, out)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, ulps=84)


def test_bands_that_differ_in_numbers_are_one_program():
    q, k, v = inputs(num_bands=2)
    traces = []

    @jax.jit
    def run(bands):
        traces.append(bands)
        return attention(q, k, v, SEGMENTS, bands=bands, implementation="blockwise", block_size=8)

    for window in (3, 5, 8):
        bands = jax.tree.map(jnp.float32, (Band(high=window), Band(low=window, keys=window - 1)))
        masks = (lambda i, j, w=window: i - j < w, lambda i, j, w=window: i - j >= w and j < w - 1)
        start = np.asarray(place_of_rows(SEGMENTS, (B, T)).start)
        got = run(bands)
        for b, first in ((0, 0), (0, 20), (1, 5)):
            here = start[b] == first
            of_document = [lambda i, j, m=m, first=first: m(i - first, j - first) for m in masks]
            close(got[b, here], by_hand(q, k, v, start, of_document)[b, here])
    assert len(traces) == 1


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize(
    ("band", "window", "chunk"),
    [
        (Band(), None, None),
        (Band(high=9), None, None),
        (Band(low=9), None, None),
        (Band(low=5, keys=3), None, None),
        (Band(low=1, high=2, chunk=7), None, None),
        (Band(low=6, high=29), None, None),
        (Band(also=(Range(high=6),)), 6, None),
        (Band(also=(Range(high=1, chunk=10),)), None, 10),
        (Band(mask=jax.tree_util.Partial(lambda i, j: i - j < 5)), None, None),
    ],
)
def test_blocks_are_visited_where_a_pair_is_seen(band, window, chunk, segments):
    """Against every pair's own mask: nothing seen is skipped, no block called full has a pair that is not seen, and
    where there is one document no empty block is visited at either end."""
    block, shape = 4, (1 if segments is None else B, T)
    place = place_of_rows(segments, shape)
    q, k, v = (jax.tree.map(lambda x: x[: shape[0]], x) for x in inputs())
    walk = make_walk(block, q, k, v, None, (place, place), (band,))
    order, segment, within = (np.asarray(x) for x in (place.index, place.segment, place.within))
    i, j = within[:, :, None], within[:, None, :]
    seen = (order[:, :, None] >= order[:, None, :]) & (segment[:, :, None] == segment[:, None, :])
    seen &= np.asarray(band.replace(also=()).holds(i, j))
    seen &= True if window is None else i - j < window
    seen &= True if chunk is None else i // chunk == j // chunk
    padded = np.zeros((shape[0], walk.block * walk.q[0].shape[2], -(-T // block) * block), bool)
    padded[:, :T, :T] = seen
    tiles = padded.reshape(shape[0], -1, walk.block, padded.shape[2] // block, block)
    some, every = np.asarray(tiles.any((2, 4))), np.asarray(tiles.all((2, 4)))
    start, stop, full_start, full_stop = (np.asarray(x[0])[..., None] for x in walk.visits)
    at = np.arange(tiles.shape[3])
    visited, full = (at >= start) & (at < stop), (at >= full_start) & (at < full_stop)
    assert not (some & ~visited).any()
    assert not (full & ~every).any() and (full <= visited).all()
    if segments is None and band.mask is None:
        assert (visited == some).all()
        assert band.also or every.sum() - full.sum() == 0


@pytest.mark.parametrize(
    ("band", "seen"),
    [
        (Band(), lambda i, j: True),
        (Band(low=3, high=8), lambda i, j: 3 <= i - j < 8),
        (Band(low=1, high=3, chunk=5), lambda i, j: 1 <= i // 5 - j // 5 < 3),
        (Band(low=4, keys=2), lambda i, j: i - j >= 4 and j < 2),
        (Band(low=2, also=(Range(high=9), Range(high=1, chunk=8))), lambda i, j: 2 <= i - j < 9 and i // 8 == j // 8),
        (Band(high=2, chunk=2**23 - 1), lambda i, j: i // (2**23 - 1) - j // (2**23 - 1) < 2),
    ],
)
def test_a_band_holds_where_its_definition_does(band, seen):
    far = 2**24 - 40 if float(band.chunk) > 1e6 else 0  # up to the largest index that float32 counts
    i, j = np.tril_indices(40)
    want = [seen(a + far, b + far // 2) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    np.testing.assert_array_equal(band.holds(i + far, j + far // 2), want)
