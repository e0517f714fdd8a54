"""Windows, chunks and patterns of layers: which keys a query sees, against masks written from the definitions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import place_of_rows
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.inference import LM, decode_step, prefill
from giraffe_jax.model import Llama, ModelConfig, init_params
from giraffe_jax.positions import Encoding, bind, distances, rotations
from giraffe_jax.positions.layers import of_layer
from tests.close import close

MODEL = dict(head_dim=8, theta=1e4, original_len=32)
QUERY, KEY = np.arange(100)[:, None], np.arange(100)[None, :]


@pytest.mark.parametrize(
    ("name", "parameters", "seen"),
    [
        ("sliding_window", dict(window=16.0), QUERY - KEY < 16),
        ("chunked", dict(chunk_size=24.0), QUERY // 24 == KEY // 24),
    ],
)
def test_keys_that_are_seen(name, parameters, seen):
    got = distances([dict(name=name, **parameters)], length=100, **MODEL)
    np.testing.assert_allclose(got, np.where(seen & (QUERY >= KEY), QUERY - KEY, np.nan), atol=0.01)


def layers(scaling, num_layers=8, length=100):
    """The bound encoding at positions 0 .. length - 1, and whether each layer rotates."""
    e = bind(scaling, num_layers=num_layers, length=length, **MODEL).at(jnp.arange(float(length))[None])
    return e, [bool((row > 0).all()) for row in np.asarray(e.inv_freq)]


def test_smollm3():
    """Its config: no_rope_layers[i] = (i + 1) % 4 != 0, attention full everywhere, no temperature."""
    e, rotates = layers([dict(name="nope_layers", every=4)], 12)
    assert rotates == [True, True, True, False] * 3
    assert e.bands == () and e.window is None and e.chunk is None and e.query_scale is None


def test_irope_of_llama_4():
    """Llama4TextConfig: every fourth layer without rotation, with full attention and temperature; chunks elsewhere."""
    temperature = dict(name="llama4_temperature", floor_scale=32.0, every=4)
    scaling = [dict(name="nope_layers", every=4), dict(name="chunked", chunk_size=24.0, full_every=4), temperature]
    e, rotates = layers(scaling)
    assert rotates == [True, True, True, False] * 2
    [[chunks]] = [band.also for band in e.bands]
    assert chunks.chunk.tolist() == [24.0, 24.0, 24.0, math.inf] * 2
    assert (float(chunks.low), float(chunks.high)) == (0.0, 1.0)
    want = [1 + 0.1 * math.log(math.floor((n + 1) / 32) + 1) for n in range(100)]
    for layer in range(8):
        close(e.query_scale[layer, 0], 1.0 if rotates[layer] else want)


def test_swan():
    """Layers with a window and rotation, and between them layers without either, whose logits grow with log n."""
    scaling = [
        dict(name="nope_layers", every=4),
        dict(name="sliding_window", window=16.0, full_every=4),
        dict(name="logn", every=4),
    ]
    e, rotates = layers(scaling)
    assert rotates == [True, True, True, False] * 2
    [[window]] = [band.also for band in e.bands]
    assert window.high.tolist() == [16.0, 16.0, 16.0, math.inf] * 2
    assert (float(window.low), float(window.chunk)) == (0.0, 1.0)
    want = [max(1.0, math.log(n + 1) / math.log(32)) for n in range(100)]
    for layer in range(8):
        close(e.query_scale[layer, 0], 1.0 if rotates[layer] else want)


@pytest.mark.parametrize("every", [0, 2])
def test_a_temperature_of_some_layers_decodes_as_it_prefills(every):
    """Alone among layers that all rotate, where only queries differ from layer to layer; raw keys as well."""
    shape = dict(vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, **MODEL)
    config = ModelConfig(**shape, positions=(dict(name="llama4_temperature", floor_scale=8.0, every=every),))
    tokens = jax.random.randint(jax.random.key(7), (1, 30), 0, 32)
    lm = LM(config, jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(0))), None)
    want, _ = prefill(lm, tokens, np.array([30]), config.bind(), capacity=30)
    for raw in (False, True):
        _, cache = prefill(lm, tokens[:, :29], np.array([29]), config.bind(), capacity=30, raw=raw)
        got, _ = decode_step(lm, tokens[:, 29], config.bind(), cache)
        close(got, want, ulps=256)


def test_patterns_of_layers():
    scaling = [
        dict(name="nope_layers", every=4),
        dict(name="chunked", chunk_size=64.0, full_every=4),
        dict(name="sliding_window", window=32.0, full_every=2),
    ]
    e = bind(scaling, num_layers=8, **MODEL)
    plain = bind([], **MODEL).inv_freq
    for layer in range(8):
        rotates = (layer + 1) % 4 != 0
        np.testing.assert_array_equal(e.inv_freq[layer], plain if rotates else 0 * plain)
        assert e.chunk[layer] == (64.0 if rotates else np.inf)
        assert e.window[layer] == (32.0 if (layer + 1) % 2 else np.inf)


def test_frequencies_may_follow_a_pattern():
    e = bind([dict(name="nope_layers", every=2), dict(name="linear", factor=4.0)], num_layers=2, **MODEL)
    np.testing.assert_array_equal(
        e.inv_freq, np.stack([bind([], **MODEL).inv_freq / 4, np.zeros(4)]).astype(np.float32)
    )


def test_windows_are_narrowed_never_widened():
    scaling = [dict(name="sliding_window", window=8.0), dict(name="sliding_window", window=32.0)]
    assert float(jnp.asarray(bind(scaling, **MODEL).window)) == 8.0


@pytest.mark.parametrize("full_every", [0, 2])
def test_chunks_given_twice_part_tokens_at_the_starts_of_both(full_every):
    """Of 24 and 40 tokens: at 24, 40, 48, 72, 80, 96; by a list of these places, without a quotient."""
    methods = [dict(name="chunked", chunk_size=24.0), dict(name="chunked", chunk_size=40.0, full_every=full_every)]
    place = place_of_rows(None, (1, 100))
    both, first = ([0, 24, 40, 48, 72, 80, 96, 100], [0, 24, 48, 72, 96, 100])
    for scaling in (methods, methods[::-1]):
        e = bind(scaling, num_layers=2, **MODEL).at(np.arange(100.0)[None])
        for layer, starts in enumerate((both, first if full_every else both)):
            want = np.zeros((100, 100), bool)
            for start, end in itertools.pairwise(starts):
                want[start:end, start:end] = np.tri(end - start, dtype=bool)
            [band] = of_layer(e.bands, layer, 2)
            np.testing.assert_array_equal(band.holds(QUERY, KEY) & (KEY <= QUERY), want)
            low, high = (np.asarray(x[0, 0])[:, None] for x in intervals(place, (band,)))
            np.testing.assert_array_equal((low <= KEY) & (KEY < high), want)


BETWEEN, APART = QUERY // 20 - KEY // 20, QUERY - KEY
BANDS = {  # of each method, the pairs of every band by its definition
    "self_extend": (dict(window=8, group=4), [APART < 8, APART >= 8]),
    "dca": (dict(chunk_size=24, local_size=4), [BETWEEN == 0, BETWEEN == 1, BETWEEN >= 2]),
    "streaming": (dict(window=30, sinks=3), [APART < 30, (APART >= 30) & (KEY < 3)]),
    "none": (None, [APART >= 0]),
}


@pytest.mark.parametrize("name", BANDS)
def test_windows_and_chunks_narrow_every_band_in_any_order_of_methods(name):
    """A window of 25 in all but every second layer and chunks of 40, before, between and after bands."""
    parameters, of_bands = BANDS[name]
    methods = [dict(name="sliding_window", window=25.0, full_every=2), dict(name="chunked", chunk_size=40.0)]
    methods += [] if parameters is None else [dict(name=name, **parameters)]
    place = place_of_rows(None, (1, 100))
    for scaling in itertools.permutations(methods):
        e = bind(scaling, num_layers=2, **MODEL).at(np.arange(100.0)[None])
        for layer, window in enumerate((APART < 25, True)):
            bands = of_layer(e.bands, layer, 2)
            seen = intervals(place, bands)
            for n, (band, of_band) in enumerate(zip(bands, of_bands, strict=True)):
                want = of_band & window & (QUERY // 40 == KEY // 40) & (KEY <= QUERY)
                np.testing.assert_array_equal(band.holds(QUERY, KEY) & (KEY <= QUERY), want)
                low, high = (np.asarray(x[n, 0])[:, None] for x in seen)
                np.testing.assert_array_equal((low <= KEY) & (KEY < high), want)


def windows(e: Encoding, *, first: float, second: float) -> Encoding:
    """Own windows of two layers."""
    return e.replace(window=np.array([first, second]))


SHAPE = dict(vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, block_size=4, **MODEL)


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_layers_have_windows_of_their_own(attention):
    """What the last of 30 tokens is a function of: with windows of 4 and 9, the tokens up to 3 + 8 back."""
    config = ModelConfig(**SHAPE, attention=attention)
    params = init_params(config, jax.random.key(0))
    scaling = [dict(name=windows, first=4.0, second=9.0), dict(name="self_extend", window=3, group=2)]
    e = bind(scaling, num_layers=2, **MODEL).at(jnp.arange(30.0)[None])

    @jax.jit
    @jax.grad
    def gradient(params):
        hidden, _ = Llama(config).apply({"params": params}, jnp.arange(30)[None], e)
        return jnp.sum(hidden[0, -1] * jnp.arange(16.0))

    reached = jnp.abs(gradient(params)["embed"]["embedding"]).max(1) > 0  # every token is at one place
    assert np.flatnonzero(reached).tolist() == list(range(30 - 1 - 3 - 8, 30))


def test_windows_of_layers_over_bands_decode_as_they_prefill():
    methods = (dict(name=windows, first=12.0, second=math.inf), dict(name="self_extend", window=5, group=2))
    config = ModelConfig(**SHAPE)
    lm = LM(config, jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(0))), None)
    e = bind([*methods, dict(name="chunked", chunk_size=24.0, full_every=2)], num_layers=2, **MODEL)
    tokens = jax.random.randint(jax.random.key(7), (1, 30), 0, 32)
    want, _ = prefill(lm, tokens, np.array([30]), e, capacity=30, raw=True)
    _, cache = prefill(lm, tokens[:, :29], np.array([29]), e, capacity=30, raw=True)
    got, _ = decode_step(lm, tokens[:, 29], e, cache)
    close(got, want, ulps=256)


def test_a_window_that_comes_too_late_is_refused():
    e = bind([], **MODEL).at(jnp.arange(4.0)[None])
    with pytest.raises(ValueError, match=r"a window or chunk beside its bands: set it before .at\(positions\)"):
        rotations(e.replace(window=jnp.float32(2)))
