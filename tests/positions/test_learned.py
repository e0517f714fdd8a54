"""Learned tables: their gradient against finite differences in float64, and the entries they are written as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import attend, place_of_rows
from giraffe_jax.hf import export
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import (
    bind,
    frequencies,
    learned_entries,
    longrope_entry,
    one_table,
    rotate,
    rotations,
    turned,
)
from tests.close import close

MODEL = dict(head_dim=32, theta=10000.0, original_len=256)
PLANES = np.arange(16)
RATIO = np.random.default_rng(0).normal(size=16) / 4


def by_hand(q, k, v, weights, inv_freq):
    """The weighted sum of causal attention's output, written out pair by pair in float64."""
    total, head_dim = 0.0, q.shape[-1]
    half = head_dim // 2

    def turn(x, position):
        angle = position * inv_freq
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    for n in range(q.shape[1]):
        for i in range(q.shape[0]):
            query = turn(q[i, n], i)
            logits = np.array([query @ turn(k[j, n // 2], j) for j in range(i + 1)]) / np.sqrt(head_dim)
            share = np.exp(logits - logits.max())
            total += weights[i, n] @ (share / share.sum() @ v[: i + 1, n // 2])
    return total


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_gradient_is_that_of_finite_differences_in_float64(implementation):
    rng = np.random.default_rng(1)
    q, weights = rng.normal(size=(2, 13, 4, 32))
    k, v = rng.normal(size=(2, 13, 2, 32))
    e = bind([dict(name="ntk", factor=4.0)], **MODEL)
    start, place = np.asarray(e.inv_freq, np.float64), place_of_rows(None, (1, 13))

    def loss(log_ratio):
        arrays = [jnp.asarray(x, jnp.float32)[None] for x in (q, k, v)]
        where = turned(e.at(jnp.arange(13.0)[None]), {"positions": {"log_ratio": log_ratio}})
        (t,) = rotations(where)
        turned_q, turned_k = rotate(arrays[0], t.q_cos, t.q_sin), rotate(arrays[1], t.k_cos, t.k_sin)
        settings = dict(q_place=place, k_place=place, implementation=implementation, block_size=4)
        out, _ = attend((turned_q,), (turned_k,), arrays[2], **settings)
        return jnp.sum(out[0] * jnp.asarray(weights, jnp.float32))

    value, got = jax.jit(jax.value_and_grad(loss))(jnp.asarray(RATIO, jnp.float32))
    close(value, by_hand(q, k, v, weights, start * np.exp(RATIO)), ulps=1024)
    step = 1e-5
    want = []
    for i in range(16):
        up, down = RATIO + step * (PLANES == i), RATIO - step * (PLANES == i)
        sides = [by_hand(q, k, v, weights, start * np.exp(x)) for x in (up, down)]
        want.append((sides[0] - sides[1]) / (2 * step))
    assert np.abs(want).min() > 1e-5  # every plane counts
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "scaling",
    [
        [],
        [dict(name="ntk", factor=4.0)],
        [dict(name="yarn", factor=8.0), dict(name="power", exponent=0.1)],
        [dict(name="truncate", cutoff_len=256.0)],
        [dict(name="p_rope", p=0.5)],
    ],
    ids=str,
)
def test_a_table_becomes_one_longrope_entry(scaling):
    start, gain = frequencies(scaling, **MODEL)
    (entry,) = learned_entries(scaling, RATIO, **MODEL, num_layers=2)
    assert entry["name"] == "longrope" and entry["factor"] == max([1.0, *(c.get("factor", 1.0) for c in scaling)])
    for length in (None, 100, 100_000):
        got, got_gain = frequencies([entry], **MODEL, length=length)
        np.testing.assert_allclose(got, start * np.exp(RATIO), rtol=1.2e-7, atol=1e-29)
        assert got_gain == gain
    # and the step of training turned by the same table
    inside = turned(bind(scaling, **MODEL).at(np.zeros((1, 1))), {"positions": {"log_ratio": jnp.asarray(RATIO)}})
    np.testing.assert_allclose(inside.inv_freq, got, rtol=3e-7, atol=1e-29)


@pytest.mark.parametrize(
    "scaling",
    [
        [dict(name="dynamic", factor=2.0)],
        [dict(name="self_extend", window=64, group=4)],
        [dict(name="nope_layers", every=2)],
        [dict(name="longrope", short_factor=[1.0] * 16, long_factor=[4.0] * 16)],
    ],
    ids=str,
)
def test_what_is_more_than_a_table_keeps_its_methods(scaling):
    entries = learned_entries(scaling, RATIO, **MODEL, num_layers=2)
    assert entries[:-1] == scaling and entries[-1]["name"] == "longrope"
    for length in (100, 700):
        where = bind(scaling, **MODEL, num_layers=2).at(np.zeros((1, 1)), length=length)
        want = turned(where, {"positions": {"log_ratio": jnp.asarray(RATIO, jnp.float32)}})
        got = bind(entries, **MODEL, num_layers=2).at(np.zeros((1, 1)), length=length)
        np.testing.assert_allclose(got.inv_freq, want.inv_freq, rtol=5e-7)
        assert got.bands == want.bands and float(got.gain) == float(want.gain)


def test_a_learned_entry_is_a_table_again_and_training_methods_stay():
    first = learned_entries([dict(name="yarn", factor=4.0), dict(name="randomize")], RATIO, **MODEL, num_layers=2)
    assert [call["name"] for call in first] == ["longrope", "randomize"] and first[0]["factor"] == 4.0
    second = learned_entries(first, RATIO, **MODEL, num_layers=2)
    assert [call["name"] for call in second] == ["longrope", "randomize"]
    want = frequencies([dict(name="yarn", factor=4.0)], **MODEL)[0] * np.exp(2 * RATIO)
    np.testing.assert_allclose(frequencies(second[:1], **MODEL)[0], want, rtol=3e-7)


def test_one_table_sees_what_changes_with_length():
    same, other = [2.0] * 16, [4.0] * 16
    longrope = dict(name="longrope", short_factor=same, long_factor=same, factor=4.0)
    found = one_table([longrope], **MODEL)
    assert found is not None
    np.testing.assert_allclose(found[0], 10000.0 ** (-PLANES / 16) / 2, rtol=1e-7)
    assert one_table([longrope | dict(long_factor=other)], **MODEL) is None
    assert one_table([dict(name="dynamic", factor=1.0)], **MODEL) is None
    assert one_table([dict(name="self_extend", window=64, group=4)], **MODEL) is None


def learned_model():
    scaling = learned_entries([dict(name="yarn", factor=4.0)], RATIO, **MODEL, num_layers=2)
    shape = dict(vocab_size=258, d_model=64, d_mlp=64, num_layers=2, num_heads=2, num_kv_heads=1)
    return ModelConfig(**shape, **MODEL, positions=tuple(scaling))


def test_the_entry_exports_with_equal_lists_and_its_gain():
    rope = export.config_to_json(learned_model())["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["short_factor"] == rope["long_factor"]
    assert rope["factor"] == 4.0 and rope["attention_factor"] == pytest.approx(0.1 * np.log(4.0) + 1, rel=1e-7)


@pytest.mark.oracle
def test_transformers_reads_the_learned_table():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**export.config_to_json(learned_model()))
    want = frequencies([dict(name="yarn", factor=4.0)], **MODEL)[0] * np.exp(RATIO)
    for seq_len in (None, 100, 1000):
        got, gain = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=seq_len)
        np.testing.assert_allclose(got.numpy(), want, rtol=5e-7)
        assert gain == pytest.approx(0.1 * np.log(4.0) + 1, rel=1e-7)


def test_a_plane_that_does_not_turn_has_a_divisor_json_can_hold():
    entry = longrope_entry(np.array([1.0, 0.0]), 1.0, head_dim=4, theta=100.0)
    assert entry["long_factor"] == [1.0, 1e30]
    np.testing.assert_allclose(frequencies([entry], head_dim=4, theta=100.0, original_len=8)[0], [1.0, 0.0], atol=1e-30)
