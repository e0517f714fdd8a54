"""What every method of the catalogue promises, picked up from its file: a new method is tested here by existing."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.positions import bind, frequencies, names, rotate, rotations
from tests.close import close

MODEL = dict(head_dim=8, theta=10000.0, original_len=32)
PLAIN = frequencies([], **MODEL)[0]
CATALOGUE = {name: importlib.import_module(f"giraffe_jax.positions.methods.{name}") for name in names()}


@pytest.fixture(params=sorted(CATALOGUE))
def name(request):
    return request.param


def example(name):
    return [dict(name=name, **CATALOGUE[name].EXAMPLE)]


def logits(e, positions, seed=0):
    q, k = jax.random.normal(jax.random.key(seed), (2, 1, positions.shape[1], 1, e.head_dim))
    table = rotations(e.at(positions))[0]
    return jnp.einsum("btnh,bsnh->bts", rotate(q, table.q_cos, table.q_sin), rotate(k, table.k_cos, table.k_sin))


def test_the_catalogue_is_not_empty():
    assert {"linear", "ntk", "dynamic", "yarn", "llama3", "longrope", "power", "truncate", "randomize", "xpos"} <= set(
        names()
    )


def test_file_holds_one_documented_function_with_its_source(name):
    module = CATALOGUE[name]
    function = getattr(module, name)
    assert inspect.getdoc(function) and ("arXiv" in module.__doc__ or "meta-llama" in module.__doc__)
    parameters = inspect.signature(function).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[1:])


def test_identity_parameters_are_plain_rope_bit_for_bit(name):
    identity = CATALOGUE[name].IDENTITY
    if identity is None:
        e = bind(example(name), **MODEL, length=32).at(jnp.arange(32.0)[None])
    else:
        e = bind([dict(name=name, **identity)], **MODEL, length=64).at(jnp.arange(32.0)[None])
    np.testing.assert_array_equal(e.inv_freq, PLAIN)
    assert float(e.gain) == 1.0
    assert e.log_decay is None or not np.any(e.log_decay)
    np.testing.assert_array_equal(e.positions, jnp.arange(32.0)[None])


def test_example_changes_something_and_stays_float32(name):
    e = bind(example(name), **MODEL, length=64).at(jnp.arange(64.0)[None], key=jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(e))
    plain = bind([], **MODEL, length=64).at(jnp.arange(64.0)[None])
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(rotations(e)), jax.tree.leaves(rotations(plain)), strict=True)
    )


def test_jit_equals_eager(name):
    positions, key = jnp.arange(48.0)[None], jax.random.key(1)
    e = bind(example(name), **MODEL)
    eager = rotations(e.at(positions, key=key))
    jitted = jax.jit(lambda e, p, k: rotations(e.at(p, key=k)))(e, positions, key)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        # An angle is a position times a frequency: 64 ulps of the frequency are 48 times as much of the last angle.
        close(a, b, ulps=64 * 48)


def test_only_distances_matter(name):
    e = bind(example(name), **MODEL, length=64)
    positions = jnp.arange(16.0)[None]
    close(logits(e, positions + 40), logits(e, positions), ulps=64 * 56)


def test_finite_at_long_lengths(name):
    length = 8192.0
    e = bind(example(name), **MODEL, length=length).at(jnp.linspace(0, length - 1, 64)[None], key=None)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(rotations(e)))


def test_composes_with_linear(name):
    inv_freq, gain = frequencies(example(name) + [dict(name="linear", factor=2.0)], **MODEL, length=64)
    alone, alone_gain = frequencies(example(name), **MODEL, length=64)
    np.testing.assert_allclose(inv_freq, alone / 2, rtol=3e-7)
    assert gain == alone_gain


def test_frequency_methods_share_one_structure_so_one_compilation():
    static = [n for n in CATALOGUE if n not in ("randomize", "xpos")]
    structures = {jax.tree.structure(bind(example(n), **MODEL, length=64)) for n in static}
    assert len(structures) == 1
