"""The forms of one CPU against the plain formulas: values in float64, gradients by automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import attend, place_of_rows
from giraffe_jax.loading import load
from giraffe_jax.model import Llama, unembedding
from giraffe_jax.ops import choose, cpu
from giraffe_jax.ops.loss import next_token_loss
from tests.close import close


def draw(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def swiglu(x, gate, up, down):
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


CASES = {
    "wider": (cpu.linear, functools.partial(jnp.einsum, "btd,dnh->btnh"), [(2, 7, 5), (5, 3, 4)]),
    "narrower": (cpu.linear, functools.partial(jnp.einsum, "btnh,nhd->btd"), [(2, 7, 3, 4), (3, 4, 5)]),
    "swiglu": (cpu.gated, swiglu, [(7, 6), (6, 10), (6, 10), (10, 6)]),
    "swiglu in chunks": (cpu.gated, swiglu, [(12, 6), (6, 10), (6, 10), (10, 6)]),
    "norm": (functools.partial(cpu.rms_norm, eps=1e-5), norm, [(7, 6), (6,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_formulas(name, monkeypatch):
    monkeypatch.setattr(cpu, "MLP_CHUNK", 4)
    ours, plain, shapes = CASES[name]
    inputs = draw(*shapes)
    (out, back), (want, want_back) = jax.vjp(ours, *inputs), jax.vjp(plain, *inputs)
    close(out, want, ulps=256)
    (g,) = draw(out.shape)
    for got, expected in zip(back(g), want_back(g), strict=True):
        close(got, expected, ulps=1024)


def test_norm_of_bfloat16_is_computed_in_float32():
    x, scale = draw((50, 64), (64,))
    got = cpu.rms_norm(x.astype(jnp.bfloat16), scale, 1e-5)
    assert got.dtype == jnp.bfloat16
    close(got, norm(np.asarray(x.astype(jnp.bfloat16), np.float64), np.asarray(scale, np.float64)), ulps=2**16)


def test_the_model_and_its_gradient_are_those_of_any_device(monkeypatch):
    lm = load("giraffe-mini")
    draw = np.random.default_rng(0).integers(0, lm.config.vocab_size, (2, 2, 200))
    tokens, targets = jnp.asarray(draw, jnp.int32)
    segments = jnp.asarray(np.repeat([[1, 2], [3, 3]], 100, axis=1), jnp.int32)
    places = jnp.where(segments == 2, jnp.arange(200.0) - 100, jnp.arange(200.0))

    def loss(params):
        encoding = lm.config.bind().at(places)
        hidden, _ = Llama(lm.config).apply({"params": params}, tokens, encoding, segments)
        return next_token_loss(hidden, unembedding(params), targets, jnp.full((2, 200), 1 / 400), chunk=64)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(lm.params)
    monkeypatch.setattr(choose, "ONE_CPU", choose.ELSEWHERE)
    want, expected = jax.jit(jax.value_and_grad(lambda params: loss(params)))(lm.params)
    close(value, want)
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        close(got, wanted, ulps=1024)


@pytest.mark.parametrize("grouped", [1, 3])
def test_attention_walks_its_heads_at_once_elsewhere_and_gets_the_same(monkeypatch, grouped):
    q, k, v, d = draw((2, 70, 2 * grouped, 8), (2, 70, 2, 8), (2, 70, 2, 8), (2, 70, 2 * grouped, 8))
    place = place_of_rows(jnp.asarray(np.repeat([[1, 2], [3, 3]], 35, axis=1), jnp.int32), (2, 70))

    def both(q, k, v, d):
        settings = dict(q_place=place, k_place=place, implementation="blockwise", block_size=16)
        out, back = jax.vjp(lambda q, k, v: attend((q,), (k,), v, **settings)[0], q, k, v)
        return out, back(d)

    got = jax.jit(both)(q, k, v, d)
    monkeypatch.setattr(choose, "ONE_CPU", choose.ELSEWHERE)
    want = jax.jit(lambda *inputs: both(*inputs))(q, k, v, d)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, ulps=84)
