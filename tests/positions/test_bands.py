"""Distances of every method of bands: measured through attention, against the closed form of reference and paper."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import bind, distances, needs_raw_keys, rotations
from giraffe_jax.positions.bands import Line
from giraffe_jax.positions.methods.lampe import Shrunk, mapped
from tests.close import ULP, close

MODEL = dict(head_dim=64, theta=1e4, original_len=96)


def rerope(i, j, window):
    return min(i - j, window)


def leaky_rerope(i, j, window, factor):
    return i - j if i - j < window else window + (i - j - window) / factor


def self_extend(i, j, window, group):
    return i - j if i - j < window else i // group - j // group + window - window // group


def dca(i, j, chunk_size, local_size):
    c = chunk_size - local_size
    apart = i // c - j // c
    if apart == 0:
        return i - j
    return min(i % c + c, chunk_size) - j % c if apart == 1 else min(2 * c - 1, chunk_size) - j % c


def string(i, j, shift, window):
    return i - j if i - j < shift else i - j - shift + window


def lm_infinite(i, j, window, num_global):
    return min(i - j, window) if i - j < window or j < num_global else math.nan


def streaming(i, j, window, sinks):
    """Positions inside a cache that holds the sinks and the last `window` tokens."""
    cache = places(i, window, sinks)
    return cache[i] - cache[j] if j in cache else math.nan


@functools.lru_cache(maxsize=1)
def places(i, window, sinks):
    return {t: place for place, t in enumerate(t for t in range(i + 1) if t < sinks or t > i - window)}


def lampe(i, j, a, b, longest, head, tail, length):
    """In whole numbers: m from the sigmoid, then three regions of D."""
    m = min(max(round(longest / (1 + math.exp(-(a * length + b)))), head + tail), length)
    if i - j <= head or length <= head + tail:
        return i - j
    if i - j >= length - tail:
        return m - length + i - j
    above, below = m - head - tail, length - head - tail
    return above * (i - head) // below + head - above * j // below


CLOSED_FORMS = {
    "rerope": (rerope, dict(window=24)),
    "leaky_rerope": (leaky_rerope, dict(window=24, factor=8.0)),
    "self_extend": (self_extend, dict(window=24, group=5)),
    "dca": (dca, dict(chunk_size=72, local_size=12)),
    "string": (string, dict(shift=31, window=8)),
    "lm_infinite": (lm_infinite, dict(window=40, num_global=3)),
    "streaming": (streaming, dict(window=40, sinks=3)),
    "lampe": (lampe, dict(a=0.02, b=-2.0, longest=72, head=12, tail=8)),
}


def closed_form(name, length, **changes):
    function, parameters = CLOSED_FORMS[name]
    parameters = parameters | changes | (dict(length=length) if name == "lampe" else {})
    seen = functools.partial(function, **parameters)
    return np.array([[seen(i, j) if j <= i else math.nan for j in range(length)] for i in range(length)])


@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
def test_distance_of_every_pair(name):
    got = distances([dict(name=name, **CLOSED_FORMS[name][1])], length=256, **MODEL)
    np.testing.assert_allclose(got, closed_form(name, 256), atol=64 * ULP * 256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rerope", dict(window=512)),
        ("leaky_rerope", dict(window=512, factor=16.0)),
        ("self_extend", dict(window=512, group=8)),
        ("dca", dict(chunk_size=384, local_size=64)),
        ("string", dict(shift=676, window=128)),
        ("lm_infinite", dict(window=1024, num_global=10)),
        ("streaming", dict(window=1020, sinks=4)),
        ("lampe", dict(a=1.5e-3, b=-1.0, longest=700, head=64, tail=40)),
    ],
)
def test_distance_of_every_pair_up_to_2048(name, parameters):
    got = distances([dict(name=name, **parameters)], length=2048, **MODEL)
    np.testing.assert_allclose(got, closed_form(name, 2048, **parameters), atol=64 * ULP * 2048)


def test_plain_distances_and_other_methods_before_bands():
    index = np.arange(64)
    plain = np.tril(distances([], length=64, **MODEL))
    np.testing.assert_allclose(plain, np.tril(np.subtract.outer(index, index)), atol=0.01)
    scaling = [dict(name="yarn", factor=4.0), dict(name="logn"), dict(name="rerope", window=24)]
    np.testing.assert_allclose(distances(scaling, length=64, **MODEL), closed_form("rerope", 64), atol=0.01)


@given(st.sampled_from(sorted(CLOSED_FORMS)), st.integers(1, 40), st.integers(1, 40), st.integers(1, 200),
       st.integers(160, 400))  # fmt: skip
def test_bands_are_disjoint_and_cover_what_they_promise(name, first, second, original_len, length):
    """Every pair is in at most one band; in exactly one, but where a method forgets on purpose. `length` is that of the
    sequence, which may go on beyond the pairs, as while text is generated."""
    keys = ("head", "tail") if name == "lampe" else list(CLOSED_FORMS[name][1])
    parameters = CLOSED_FORMS[name][1] | dict(
        zip(keys, (first + second if name == "dca" else first, second), strict=False)
    )
    bands = bind([dict(name=name, **parameters)], head_dim=8, theta=1e4, original_len=original_len, length=length).bands
    i, j = np.tril_indices(160)
    held = sum(np.asarray(band.holds(i, j), np.int32) for band in bands)
    assert held.max() <= 1
    if name not in ("lm_infinite", "streaming"):
        assert held.min() == 1


@pytest.mark.parametrize(
    ("name", "length", "parameters"),
    [
        ("rerope", 400, {}),
        ("self_extend", 512, dict(window=48, group=11)),
        ("dca", 2000, {}),
        ("lm_infinite", 500, {}),
        ("lampe", 1000, dict(a=0.01, b=0.0, tail=16)),
    ],
)
def test_no_distance_leaves_the_trained_range(name, length, parameters):
    """What these methods are for; defaults are shares of original_len where there are any."""
    parameters = dict(window=95) if name == "rerope" else parameters
    got = distances([dict(name=name, **parameters)], length=length, **MODEL)
    assert np.nanmax(got) < MODEL["original_len"] + 0.5


def test_a_band_may_have_frequencies_and_gain_of_its_own():
    """Positions divided by four are frequencies divided by four; and a band's gain is that of cos and sin."""
    e = bind([dict(name="leaky_rerope", window=24, factor=4.0)], **MODEL).at(jnp.arange(200.0)[None])
    near, far = e.bands
    slow = far.replace(inv_freq=e.inv_freq / 4, gain=e.gain * 1.5, q_pos=Line(shift=24 * 4 - 24.0), k_pos=None)
    (_, want), (same, got) = rotations(e), rotations(e.replace(bands=(near, slow)))
    for name, table in want._asdict().items():
        close(getattr(got, name), 1.5 * table, ulps=2 * 200)  # angles up to 200 are rounded before their cosine
        close(getattr(same, name), getattr(rotations(e)[0], name), ulps=0)
    assert needs_raw_keys(e.replace(bands=(near, slow)))


@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
def test_caches_hold_raw_keys_where_bands_rotate_them_in_several_ways(name):
    entry = [dict(name=name, **CLOSED_FORMS[name][1])]
    rotated = name in ("dca", "streaming", "string")
    assert needs_raw_keys(bind(entry, length=200, **MODEL)) == (not rotated)
    # Bands that wait for a length which is pinned after binding are no other bands.
    assert needs_raw_keys(bind(entry, **MODEL).replace(length=np.float32(200))) == (not rotated)


def test_a_local_size_beyond_the_chunk_is_refused():
    with pytest.raises(ConfigError, match="local_size 80 must be less than chunk_size 72"):
        bind([dict(name="dca", chunk_size=72, local_size=80)], **MODEL)


def test_lampe_is_the_papers_rounded_once_more_at_most():
    """arXiv:2508.02308 rounds the distance of the middle; rotations can only round each side."""
    a, b, longest, head, tail = CLOSED_FORMS["lampe"][1].values()
    for length in (64, 100, 256, 1000):
        m = min(max(round(longest / (1 + math.exp(-(a * length + b)))), head + tail), length)
        ratio = (m - head - tail) / (length - head - tail)
        for i in range(length):
            for j in range(max(0, i - length + tail + 1), i - head):
                paper = math.floor(ratio * (i - j - head) + head + 1e-9)
                assert lampe(i, j, a, b, longest, head, tail, length) - paper in (0, 1)


@pytest.mark.parametrize("length", [4096, 131072, 1_000_000])
def test_lampe_rounds_exactly_where_float32_alone_would_not(length):
    settings = dict(longest=82358, a=4.505e-5, b=-2.7886, least=712)
    positions = np.random.default_rng(0).integers(0, length, 5000)
    m = int(mapped(float(length), **settings, xp=np))
    assert abs(m - min(max(82358 / (1 + math.exp(-(4.505e-5 * length - 2.7886))), 712), length)) < 0.51
    above, below = m - 712, length - 712
    got = Shrunk(jnp.float32(above), jnp.float32(below))(jnp.asarray(positions, jnp.float32))
    np.testing.assert_array_equal(got, [int(p) * above // below for p in positions])
