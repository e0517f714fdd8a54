"""What every method of the catalogue promises, picked up from its file: a new method is tested here by existing.

All but the frequencies are tested through a Llama of two layers, so that bands, masks, biases, temperatures and what a
method learns go the way they go in training and decoding. Methods that differ in numbers alone share its compilations.
"""

import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from giraffe_jax import positions as giraffe_positions
from giraffe_jax.config import ConfigError
from giraffe_jax.inference import LM, decode_step, generate, prefill
from giraffe_jax.model import Llama, ModelConfig, logits
from giraffe_jax.positions import frequencies, names, rotations
from giraffe_jax.sharding import MeshConfig, batch_sharding, make_mesh
from tests.close import ULP, close

MODEL = dict(head_dim=8, theta=10000.0, original_len=32)
CONFIG = ModelConfig(
    vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, attention="dense", **MODEL
)
KINDS = {"frequencies", "length", "training", "bands", "temperature", "decay", "mask", "layers", "bias"}
EXPORTS = {"native", "longrope", "custom", "weights only"}
# Sinks lie at the cache's end wherever the query is; lampe rounds both sides by a ratio of the lengths.
ABSOLUTE = {"streaming", "lampe"}
PLAIN = frequencies([], **MODEL)[0]
CATALOGUE = {name: importlib.import_module(f"giraffe_jax.positions.methods.{name}") for name in names()}
TOKENS = jax.random.randint(jax.random.key(7), (1, 48), 0, 32)


@pytest.fixture(params=sorted(CATALOGUE))
def name(request):
    return request.param


# Methods that differ in numbers alone run one program; one of each kind is compiled by default, all with
# `-m slow`.
PROGRAMS = {"dynamic", "fire", "logn", "mixed", "randomize", "self_extend", "sliding_window", "streaming", "yarn"}


def all_of(default):
    return [n if n in default else pytest.param(n, marks=pytest.mark.slow) for n in sorted(CATALOGUE)]


@pytest.fixture(params=all_of(PROGRAMS))
def program(request):
    return request.param


def example(name):
    return [dict(name=name, **CATALOGUE[name].EXAMPLE)]


def bind(scaling, length=None):
    return giraffe_positions.bind(scaling, num_layers=CONFIG.num_layers, length=length, **MODEL)


def count(n, start=0):
    return start + jnp.arange(float(n))[None]


def params(name=None):
    """A Llama's parameters, with those that a method learns; large queries, so that attention is not nearly uniform."""
    e = bind(example(name) if name else [], 2).at(count(2), key=jax.random.key(0))
    return sharpened(name) if e.learned else sharpened()


@functools.cache
def sharpened(name=None, sharp=4.0):
    e = bind(example(name) if name else [], 2).at(count(2), key=jax.random.key(0))
    tree = jax.jit(Llama(CONFIG).init)(jax.random.key(0), TOKENS[:, :2], e)["params"]
    tree = jax.tree_util.tree_map_with_path(lambda path, x: x * sharp if "'q'" in str(path[-2]) else x, tree)
    return tree


@functools.partial(jax.jit, static_argnames="attention")
def hidden(params, e, tokens, segments=None, *, attention="dense"):
    config = dataclasses.replace(CONFIG, attention=attention, block_size=16)
    return Llama(config).apply({"params": params}, tokens, e, segments)[0]


def forward(name, e, **settings):
    """Hidden states of a row of tokens at the encoding's positions."""
    return hidden(params(name), e, TOKENS[:, : e.positions.shape[1]], **settings)


def test_the_catalogue_is_what_is_promised():
    assert len(names()) >= 45
    assert {"linear", "ntk", "dynamic", "yarn", "llama3", "longrope", "power", "truncate", "randomize", "xpos"} <= set(
        names()
    )


def test_file_holds_one_documented_function_with_its_source(name):
    module = CATALOGUE[name]
    function = getattr(module, name)
    assert inspect.getdoc(function) and re.search("arXiv|meta-llama|kexue|bloc97", module.__doc__)
    parameters = inspect.signature(function).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[1:])
    assert set(module.ABOUT) - {"test", "instead"} == {"kind", "training_free", "export", "cache"}
    assert ("instead" in module.ABOUT) == (module.ABOUT["export"] == "custom")  # what comes nearest is said
    assert module.ABOUT["kind"] in KINDS and isinstance(module.ABOUT["training_free"], bool)
    assert module.ABOUT["export"] in EXPORTS


def test_the_closed_form_that_the_catalogue_names_is_there(name):
    """`giraffe methods` names it: the file of the method's own name, or the table that ABOUT says."""
    file = Path(__file__).parent / f"test_{CATALOGUE[name].ABOUT.get('test', name)}.py"
    assert file.is_file() and f'"{name}"' in file.read_text()


def test_identity_is_plain_rope_bit_for_bit(name):
    """IDENTITY: parameters that are plain RoPE; "short" where EXAMPLE is, on 8 tokens; None where nothing is."""
    identity = CATALOGUE[name].IDENTITY
    if identity is None:
        return
    length = 8 if identity == "short" else 48
    scaling = example(name) if identity == "short" else [dict(name=name, **identity)]
    e = bind(scaling, length).at(count(length))
    np.testing.assert_array_equal(e.inv_freq, PLAIN)
    np.testing.assert_array_equal(forward(name, e), forward(name, bind([], length).at(count(length))))


def test_example_changes_something_and_stays_float32(name):
    e = bind(example(name), 48).at(count(48), key=jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(e))
    tree = params(name)
    if name == "t5":  # its table starts at 0
        tree = jax.tree.map(lambda x: x, tree)
        tree["layers"]["attention"]["t5"]["table"] += jnp.arange(8.0)
    changed = hidden(tree, e, TOKENS)
    assert not np.allclose(changed, hidden(tree, bind([], 48).at(count(48)), TOKENS), atol=1e-3)


def test_jit_equals_eager(name):
    positions, key = count(48), jax.random.key(1)
    e = bind(example(name))
    eager = rotations(e.at(positions, key=key))
    jitted = jax.jit(lambda e, p, k: rotations(e.at(p, key=k)))(e, positions, key)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        # An angle is a position times a frequency: 64 ulps of the frequency are 48 times as much of the last angle.
        close(a, b, ulps=64 * 48)


def test_only_distances_matter(name):
    """Positions moved by 240, which groups and chunks of the examples divide, leave all as it is."""
    if CATALOGUE[name].ABOUT["kind"] == "temperature" or name in ABSOLUTE:
        return
    e = bind(example(name), 288)
    # Angles of up to 288 radians: 256 ulps of them, and what two layers with large queries make of that.
    close(forward(name, e.at(count(48, 240))), forward(name, e.at(count(48))), ulps=256 * 64)


def test_finite_at_a_million_tokens(name):
    length = 1e6 if name != "xpos" else 32768.0  # whose powers of the position outgrow float32
    e = bind(example(name), length).at(jnp.linspace(0, length - 1, 64)[None], key=None)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(rotations(e)))


def test_composes_with_linear(name):
    if CATALOGUE[name].ABOUT["kind"] == "layers":
        return
    inv_freq, gain = frequencies(example(name) + [dict(name="linear", factor=2.0)], **MODEL, length=64)
    alone, alone_gain = frequencies(example(name), **MODEL, length=64)
    np.testing.assert_allclose(inv_freq, alone / 2, rtol=4 * ULP)
    assert gain == alone_gain


def test_packed_documents_are_as_if_alone(program):
    """Two documents of 30 and 18 tokens in one row: positions restart, and so do bands' indices."""
    name = program
    e, sizes = bind(example(name), 48), (30, 18)
    packed = e.at(jnp.concatenate([count(n) for n in sizes], axis=1))
    segments = jnp.repeat(jnp.array([1, 2]), jnp.array(sizes))[None]
    got = forward(name, packed, segments=segments)
    blocks = forward(name, packed, segments=segments, attention="blockwise")
    close(blocks, got, ulps=256)
    for start, n in ((0, 30), (30, 18)):
        alone = hidden(params(name), e.at(count(n)), TOKENS[:, start : start + n])
        close(got[:, start : start + n], alone, ulps=256)


@pytest.mark.parametrize("name", all_of({"dynamic", "fire", "jet_long_freq", "self_extend"}))
def test_eight_devices_are_as_one(name):
    """Rows over four devices and tokens over two; packed documents, whose lengths are their own."""
    if name == "s2":
        pytest.skip("its groups are of a row")
    sizes = (30, 18)
    tokens = jax.random.randint(jax.random.key(3), (4, 48), 0, 32)
    places = jnp.tile(jnp.concatenate([count(n) for n in sizes], axis=1), (4, 1))
    segments = jnp.tile(jnp.repeat(jnp.array([1, 2]), jnp.array(sizes))[None], (4, 1))
    e, tree = bind(example(name)), params(name)

    @jax.jit
    def read(tree, e, tokens, places, segments):
        config = dataclasses.replace(CONFIG, attention="blockwise", block_size=16)
        return Llama(config).apply({"params": tree}, tokens, e.at(places), segments)[0]

    want = read(tree, e, tokens, places, segments)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    with jax.set_mesh(mesh):
        rows = (jax.device_put(x, batch_sharding(mesh)) for x in (tokens, places, segments))
        close(read(jax.device_put(tree, jax.sharding.NamedSharding(mesh, PartitionSpec())), e, *rows), want, ulps=256)


def test_methods_of_frequencies_in_one_program_are_each_as_alone():
    """All of them stacked, and one vmapped forward pass: numbers alone tell them apart."""
    static = [n for n in CATALOGUE if CATALOGUE[n].ABOUT["kind"] in ("frequencies", "length")]
    bound = [bind(example(n), 48).at(count(48)) for n in static]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *bound)
    tree = params()
    got = jax.jit(jax.vmap(lambda e: hidden(tree, e, TOKENS)))(together)
    for i, name in enumerate(static):
        close(got[i], hidden(params(), bound[i], TOKENS), ulps=256, what=name)
    assert len(np.unique(np.asarray(got[:, 0, -1, 0]))) > len(static) - 5  # they do differ


FOLLOW = [
    n
    for n, m in CATALOGUE.items()
    if m.ABOUT["kind"] == "length" or ("length" in getattr(m, "NEEDS", ()) and n != "lampe")  # one for a batch
]


@pytest.mark.parametrize("after", [[], [dict(name="nope_layers", every=2)]], ids=["alone", "with nope_layers"])
@pytest.mark.parametrize("name", FOLLOW)
def test_a_documents_length_is_its_own(name, after):
    """Without a length: documents of 44, 40 and 12 tokens, packed and in two rows, are as each is at its own length,
    whatever lies beside it. original_len is 32."""
    if name == "mixed" and after:
        after, before = [], after  # what differs between layers comes first
    else:
        before = []
    scaling, sizes = before + example(name) + after, ((44,), (40, 12))
    e = bind(scaling)
    width = 52
    rows = [jnp.concatenate([*[count(n)[0] for n in row], jnp.zeros(width - sum(row))]) for row in sizes]
    segments = [np.repeat([*range(1, len(row) + 1), 0], [*row, width - sum(row)]) for row in sizes]
    tokens = jax.random.randint(jax.random.key(9), (2, width), 0, 32)
    got = hidden(params(name), e.at(jnp.stack(rows)), tokens, jnp.asarray(np.stack(segments)))
    for row, documents in enumerate(sizes):
        start = 0
        for n in documents:
            part = slice(start, start + n)
            alone = hidden(params(name), bind(scaling, int(n)).at(count(int(n))), tokens[row : row + 1, part])
            close(got[row : row + 1, part], alone, ulps=256 * 8)
            start += n


@pytest.mark.parametrize("name", FOLLOW)
def test_prompts_of_several_lengths_are_read_at_their_own(name):
    """Prefill of a raw cache without a length, padded on the right, and one more token each at its new length."""
    lm, sizes = LM(CONFIG, params(name), None), np.array([44, 12])
    tokens = jax.random.randint(jax.random.key(9), (2, 45), 0, 32)
    got, cache = prefill(lm, tokens[:, :44], sizes, bind(example(name)), capacity=48, raw=True)
    more, _ = decode_step(lm, tokens[:, 44], bind(example(name)), cache)
    for row, n in enumerate(map(int, sizes)):
        alone, at = tokens[row : row + 1, :n], np.array([n])
        want, kept = prefill(lm, alone, at, bind(example(name), n), capacity=48, raw=True)
        close(got[row], want[0], ulps=256 * 8)
        want, _ = decode_step(lm, tokens[row : row + 1, 44], bind(example(name), n + 1), kept)
        close(more[row], want[0], ulps=256 * 8)


@functools.partial(jax.jit, static_argnames="attention")
def gradients(params, inv_freq, e, attention):
    def loss(params, inv_freq):
        weights = jnp.cos(jnp.arange(48 * 16.0)).reshape(1, 48, 16)
        return jnp.sum(weights * hidden(params, e.replace(inv_freq=inv_freq), TOKENS, attention=attention))

    return jax.grad(loss, (0, 1))(params, inv_freq)


def test_blockwise_gradients_are_those_of_dense(program):
    """Of all parameters, learned ones included, and of the frequencies; in training where that matters."""
    name = program
    key = jax.random.key(0) if CATALOGUE[name].ABOUT["kind"] in ("training", "mask") else None
    e = bind(example(name), 48).at(count(48), key=key)
    want, got = (gradients(params(name), e.inv_freq, e, attention) for attention in ("dense", "blockwise"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, ulps=1024, scale=1.0)  # a bias that all keys share has a gradient of terms near 1 that sum to 0


def test_prefill_equals_decoding_token_by_token(name):
    """Under the method's cache contract: raw keys where one rotation of them does not serve all."""
    lm = LM(CONFIG, params(name), None)
    e = bind(example(name), 48)
    want = logits(lm.params, forward(name, e.at(count(48))))[0]
    _, cache = prefill(lm, TOKENS[:, :40], np.array([40]), e, capacity=48, raw=giraffe_positions.needs_raw_keys(e))
    for t in range(40, 48):
        got, cache = decode_step(lm, TOKENS[:, t], e, cache)
        close(got[0], want[t], ulps=256)


def test_the_cache_contract_that_is_documented_is_the_one_that_holds(name):
    e = bind(example(name))
    raw = giraffe_positions.needs_raw_keys(e)
    assert CATALOGUE[name].ABOUT["cache"] == ("raw" if raw else "rotated")


def test_frequency_methods_share_one_structure_so_one_compilation():
    kinds = {n: m.ABOUT["kind"] for n, m in CATALOGUE.items()}
    static = [n for n, kind in kinds.items() if kind in ("frequencies", "length")]
    structures = {jax.tree.structure(bind(example(n), 64)) for n in static}
    assert len(static) > 20 and len(structures) == 1


def test_equal_parameters_share_one_compilation(name):
    assert jax.tree.structure(bind(example(name), 64)) == jax.tree.structure(bind(example(name), 64))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ([dict(name="rerope", window=8), dict(name="dca")],
         r"model.positions\[1\] \(dca\): rerope already says which distances are seen"),
        ([dict(name="kerple"), dict(name="kerple")], r"model.positions\[1\] \(kerple\): kerple is there already"),
    ],
)  # fmt: skip
def test_compositions_without_a_meaning_are_refused_with_the_reason(scaling, message):
    with pytest.raises(ConfigError, match=message):
        bind(scaling)


def test_a_pattern_of_layers_needs_their_number():
    with pytest.raises(ConfigError, match="needs to know how many there are"):
        giraffe_positions.bind(example("nope_layers"), **MODEL)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ([dict(name="dynamic", factor=2.0)], "Pin the length .* or keep raw keys"),
        ([dict(name="mixed", choices=[[], [dict(name="linear", factor=4.0)]])], "Pin the length"),
        ([dict(name="linear", factor=2.0), dict(name="lampe", a=0.05, b=-1.0)], "Pin the length"),
        ([dict(name="rerope", window=8)], "several bands rotate a key in several ways"),
    ],
)
def test_a_cache_that_would_hold_wrong_keys_is_refused(scaling, message):
    """Before anything is compiled, by prefill and by a step on a cache that was made for other methods."""
    lm, tokens = LM(CONFIG, params(), None), TOKENS[:, :8]
    with pytest.raises(ConfigError, match=message):
        prefill(lm, tokens, np.array([8]), bind(scaling), capacity=16)
    _, cache = prefill(lm, tokens, np.array([8]), bind([]), capacity=16)
    with pytest.raises(ConfigError, match=message):
        decode_step(lm, TOKENS[:, 8], bind(scaling), cache)


def test_one_length_per_call_is_refused_where_keys_are_raw():
    """Policy "per_call" leaves cached keys as they were rotated, which several bands do not let it do."""
    scaling = [dict(name="dynamic", factor=2.0), dict(name="rerope", window=8)]
    with pytest.raises(ConfigError, match="policy must be 'pinned' or 'running'"):
        generate(LM(CONFIG, params(), None), [[1, 2]], 4, bind(scaling), policy="per_call", stop=[])
