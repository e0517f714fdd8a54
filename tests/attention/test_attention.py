"""Attention against float64 numpy written from the definition, and blockwise against dense, gradients included."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import attend, place_of_rows
from giraffe_jax.attention.blockwise import _walk
from giraffe_jax.positions import CAUSAL, Band
from giraffe_jax.positions.bands import Apart
from giraffe_jax.positions.methods.lampe import Middle, Span, Tail
from tests.close import close

B, T, N, K, H = 2, 37, 4, 2, 8


def inputs(num_bands=1, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2 * num_bands + 1)
    q = tuple(jax.random.normal(k, (B, T, N, H)) for k in keys[:num_bands])
    k = tuple(jax.random.normal(k, (B, T, K, H)) for k in keys[num_bands : 2 * num_bands])
    return q, k, jax.random.normal(keys[-1], (B, T, K, H))


SPAN = Span(head=5, tail=8, longest=24, a=0.05, b=-1.0)
SEGMENTS = jnp.array([[1] * 20 + [2] * 17, [1] * 5 + [2] * 30 + [0] * 2], jnp.int32)


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
    got = attend(q, k, v, segments=segments, implementation=implementation, block_size=block_size)
    want = by_hand(q, k, v, None if segments is None else np.asarray(segments))
    close(got, want)


NEAR = Band(lambda i, j, length: i - j < 5, CAUSAL.q_pos, CAUSAL.k_pos)
FAR = Band(lambda i, j, length: (i - j >= 5) & (i - j < 20), CAUSAL.q_pos, CAUSAL.k_pos)


def slope_bias(i, j, num_heads):
    slopes = 2.0 ** -jnp.arange(1, num_heads + 1, dtype=jnp.float32)
    return -slopes[:, None, None] * (i - j).astype(jnp.float32)


@pytest.mark.parametrize(("implementation", "block_size"), IMPLEMENTATIONS)
def test_bands_and_bias(implementation, block_size):
    q, k, v = inputs(num_bands=2)
    settings = dict(
        implementation=implementation, block_size=block_size, bands=(NEAR, FAR), bias=jax.tree_util.Partial(slope_bias)
    )
    got = attend(q, k, v, segments=SEGMENTS, **settings)
    masks = (lambda i, j: i - j < 5, lambda i, j: 5 <= i - j < 20)
    want = by_hand(q, k, v, np.asarray(SEGMENTS), masks, lambda i, j, n: -(2.0 ** -(n + 1)) * (i - j))
    close(got, want)


@pytest.mark.parametrize("bands", [(CAUSAL,), (NEAR, FAR)], ids=["causal", "two bands"])
def test_gradients_of_blockwise_are_those_of_dense(bands):
    q, k, v = inputs(num_bands=len(bands))
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H))

    def loss(q, k, v, **settings):
        return jnp.sum(weights * attend(q, k, v, segments=SEGMENTS, bands=bands, **settings))

    want = jax.grad(loss, (0, 1, 2))(q, k, v, implementation="dense")
    got = jax.grad(loss, (0, 1, 2))(q, k, v, implementation="blockwise", block_size=16)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, ulps=1024)


def test_bands_count_from_the_start_of_each_document():
    q, k, v = inputs()
    chunked = (Band(lambda i, j, length: i // 6 == j // 6, CAUSAL.q_pos, CAUSAL.k_pos),)
    start = np.where(np.asarray(SEGMENTS) == 1, 0, np.argmax(np.asarray(SEGMENTS) == 2, axis=1)[:, None])
    start[1, 35:] = 35
    for implementation, block_size in IMPLEMENTATIONS:
        settings = dict(implementation=implementation, block_size=block_size)
        got = np.asarray(attend(q, k, v, segments=SEGMENTS, bands=chunked, **settings))
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
        settings |= dict(segments=segments, bands=(NEAR, FAR), bias=bias)
        return jnp.sum(weights * attend(q, k, v, **settings))

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
            return jnp.sum(attend((q,), (k,), v, implementation="blockwise", block_size=64))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(4096) < 2.2 * temporaries(2048)
    assert temporaries(4096) < 4096 * 4096  # a quarter of one float32 logits tensor of one head


def test_cached_queries_see_the_slots_up_to_their_own():
    q, k, v = inputs()
    full = attend(q, k, v, implementation="dense")
    index = jnp.array([[20], [36]])
    picked = jnp.take_along_axis(q[0], index[:, :, None, None], axis=1)
    got = attend((picked,), k, v, q_index=index)
    close(got, jnp.take_along_axis(full, index[:, :, None, None], axis=1))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize(
    ("mask", "local"),
    [
        (CAUSAL.mask, None),
        (Apart(0, 9), None),
        (Apart(9), None),
        (Apart(5, keys=3), None),
        (Apart(1, 2, 7), None),
        (Middle(SPAN), None),
        (Tail(SPAN), None),
        (CAUSAL.mask, (6.0, math.inf)),
        (CAUSAL.mask, (math.inf, 10.0)),
        (lambda i, j, length: i - j < 5, None),
    ],
)
def test_blocks_are_visited_where_a_pair_is_seen(mask, local, segments):
    """Against every pair's own mask: nothing seen is skipped, no block called full has a pair that is not seen, and
    where there is one document no empty block is visited at either end."""
    block, shape = 4, (1 if segments is None else B, T)
    place = place_of_rows(segments, shape)
    q, k, v = inputs()
    bands = (Band(mask, CAUSAL.q_pos, CAUSAL.k_pos),)
    walk = _walk(bands, block, *(jax.tree.map(lambda x: x[: shape[0]], x) for x in (q, k, v)), None, (place, place),
                 (jnp.float32(T), local))  # fmt: skip
    order, segment, within = (np.asarray(x) for x in place)
    i, j = within[:, :, None], within[:, None, :]
    seen = (order[:, :, None] >= order[:, None, :]) & (segment[:, :, None] == segment[:, None, :])
    seen &= np.asarray(mask(i, j, T))
    if local is not None:
        seen &= (i - j < local[0]) & (np.floor(i / local[1]) == np.floor(j / local[1]))
    padded = np.zeros((shape[0], walk.block * walk.q[0].shape[2], -(-T // block) * block), bool)
    padded[:, :T, :T] = seen
    tiles = padded.reshape(shape[0], -1, walk.block, padded.shape[2] // block, block)
    some, every = np.asarray(tiles.any((2, 4))), np.asarray(tiles.all((2, 4)))
    start, stop, full_start, full_stop = (np.asarray(x[0])[..., None] for x in walk.visits)
    at = np.arange(tiles.shape[3])
    visited, full = (at >= start) & (at < stop), (at >= full_start) & (at < full_stop)
    assert not (some & ~visited).any()
    assert not (full & ~every).any() and (full <= visited).all()
    if segments is None and hasattr(mask, "blocks"):
        assert (visited == some).all()
        assert local is not None or every.sum() - full.sum() == 0
