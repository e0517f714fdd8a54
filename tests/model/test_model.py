"""The Llama: against a float64 numpy Llama written from the papers, in every configuration that changes its program."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build
from giraffe_jax.model import Llama, ModelConfig, init_params, logits, num_params
from giraffe_jax.model.config import PARAM_AXES
from giraffe_jax.sharding import paths
from tests.close import close

TINY = ModelConfig(
    vocab_size=48, d_model=16, d_mlp=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, original_len=16
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 48)


def forward(config, params, tokens=TOKENS, positions=None, segments=None):
    positions = (
        jnp.tile(jnp.arange(tokens.shape[1], dtype=jnp.float32), (tokens.shape[0], 1))
        if positions is None
        else positions
    )
    return _forward(config, params, tokens, config.bind().at(positions), segments)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, e, segments):
    hidden, _ = Llama(config).apply({"params": params}, tokens, e, segments)
    return logits(params, hidden)


def by_hand(config, params, tokens):
    """RMSNorm, rotary GQA attention and SwiGLU, one token at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    d = config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + config.norm_eps) * scale

    def rotate(x, position):
        out = np.empty(d)
        for r in range(d // 2):
            angle = position * config.theta ** (-2 * r / d)
            out[r] = x[r] * math.cos(angle) - x[r + d // 2] * math.sin(angle)
            out[r + d // 2] = x[r] * math.sin(angle) + x[r + d // 2] * math.cos(angle)
        return out

    x = p["embed"]["embedding"][np.asarray(tokens)]
    layers = p["layers"]
    for a in range(config.num_layers):
        h = np.stack([norm(t, layers["attention_norm"]["scale"][a]) for t in x])
        w = {name: layers["attention"][name]["kernel"][a] for name in "qkvo"}
        q, k, v = (np.einsum("td,dnh->tnh", h, w[name]) for name in "qkv")
        mixed = np.zeros_like(q)
        for i in range(len(x)):
            for n in range(config.num_heads):
                g = n // (config.num_heads // config.num_kv_heads)
                scores = np.array([rotate(q[i, n], i) @ rotate(k[j, g], j) / math.sqrt(d) for j in range(i + 1)])
                weights = np.exp(scores - scores.max())
                mixed[i, n] = weights / weights.sum() @ v[: i + 1, g]
        x = x + np.einsum("tnh,nhd->td", mixed, w["o"])
        h = np.stack([norm(t, layers["mlp_norm"]["scale"][a]) for t in x])
        gate, up = h @ layers["mlp"]["gate"]["kernel"][a], h @ layers["mlp"]["up"]["kernel"][a]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layers["mlp"]["down"]["kernel"][a]
    x = np.stack([norm(t, p["norm"]["scale"]) for t in x])
    return x @ (p["embed"]["embedding"].T if config.tie_embeddings else p["lm_head"]["kernel"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"attention": "blockwise", "block_size": 4}, {"remat": "full", "theta": 5e5}],
)
def test_equals_a_llama_written_by_hand(changes):
    config = dataclasses.replace(TINY, **changes)
    params = init_params(config, jax.random.key(0))
    close(forward(config, params)[0], by_hand(config, params, TOKENS[0]), ulps=256)


def test_packed_documents_are_as_if_alone():
    params = init_params(TINY, jax.random.key(0))
    segments = jnp.array([[1] * 5 + [2] * 7])
    positions = jnp.concatenate([jnp.arange(5.0), jnp.arange(7.0)])[None]
    packed = forward(TINY, params, TOKENS[:1], positions, segments)
    close(packed[:, :5], forward(TINY, params, TOKENS[:1, :5]), ulps=256)
    close(packed[:, 5:], forward(TINY, params, TOKENS[:1, 5:]), ulps=256)


def test_each_layer_may_have_its_own_frequencies():
    params = init_params(TINY, jax.random.key(0))
    positions = jnp.arange(12.0)[None]
    e = TINY.bind().at(positions)

    @functools.partial(jax.jit, static_argnums=0)
    def hidden(config, params, e):
        return Llama(config).apply({"params": params}, TOKENS[:1], e)[0]

    same = e.replace(inv_freq=jnp.stack([e.inv_freq] * 2))
    close(hidden(TINY, params, same), hidden(TINY, params, e), ulps=256)
    # With one layer's frequencies changed, the other layer still reads its own: compare with a one-layer model.
    changed = e.replace(inv_freq=jnp.stack([e.inv_freq * 3, e.inv_freq]))
    first = dataclasses.replace(TINY, num_layers=1)
    cut = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    tripled = e.replace(inv_freq=e.inv_freq * 3)
    want = hidden(first, cut, tripled)
    zeroed = jax.tree.map(lambda x: x, params)
    zeroed["layers"]["attention"]["o"]["kernel"] = zeroed["layers"]["attention"]["o"]["kernel"].at[1].set(0)
    zeroed["layers"]["mlp"]["down"]["kernel"] = zeroed["layers"]["mlp"]["down"]["kernel"].at[1].set(0)
    got = hidden(TINY, zeroed, changed)
    close(got, want, ulps=256)


def test_gradients_reach_the_frequencies():
    """Learned and searched interpolation come for free: d loss / d inv_freq against a finite difference."""
    params = init_params(TINY, jax.random.key(0))
    positions = jnp.arange(12.0)[None]
    e = TINY.bind().at(positions)

    @jax.jit
    def loss(inv_freq):
        hidden, _ = Llama(TINY).apply({"params": params}, TOKENS[:1], e.replace(inv_freq=inv_freq))
        return jnp.mean(jax.nn.logsumexp(logits(params, hidden) * 3, axis=-1))

    gradient = jax.jit(jax.grad(loss))(e.inv_freq)
    step = 1e-2
    for r in (0, 2):
        bump = jnp.zeros_like(e.inv_freq).at[r].set(step)
        slope = (loss(e.inv_freq + bump) - loss(e.inv_freq - bump)) / (2 * step)
        np.testing.assert_allclose(gradient[r], slope, rtol=5e-2, atol=2e-4)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = init_params(config, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    got = forward(config, params)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, forward(TINY, params), atol=0.15)


def test_every_parameter_has_logical_axes():
    shapes = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
    normed = jax.eval_shape(lambda: init_params(dataclasses.replace(TINY, qk_norm=True), jax.random.key(0)))
    adapted = {path for path in PARAM_AXES if "/lora/" in path}
    assert set(paths(shapes)) < set(paths(normed)) == set(PARAM_AXES) - adapted
    assert {path.split("/lora/")[0] + "/kernel" for path in adapted} < set(paths(shapes))
    assert all(len(PARAM_AXES[name]) == len(leaf.shape) for name, leaf in paths(normed).items())


def test_number_of_parameters_of_llama_2_7b():
    llama2 = dict(
        vocab_size=32000, d_model=4096, d_mlp=11008, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128
    )
    assert num_params(ModelConfig(**llama2)) == 6_738_415_616


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_kv_heads=3), "model.num_kv_heads 3 does not divide num_heads 4"),
        (dict(num_layers=0), "model.num_layers must be at least 1, got 0"),
        (dict(d_modell=3), "unknown ['d_modell']"),
        (dict(attention="flash"), "allowed are 'auto', 'dense', 'blockwise'"),
        (dict(positions=[dict(name="linear", scale=2)]), "model.positions[0] (linear): unknown ['scale']"),
        (dict(head_dim=7), "head_dim must be even"),
        (dict(head_dim=2**29), "model.head_dim must be at most 65536, got 536870912"),
        (dict(vocab_size=2**31), "model.vocab_size must be at most 2147483647, got 2147483648"),
        (dict(theta=0.0), "model.theta must be a positive, finite number, got 0.0"),
        (dict(theta=math.inf), "model.theta must be a positive, finite number, got inf"),
        (dict(norm_eps=-1e-5), "model.norm_eps must be a positive, finite number, got -1e-05"),
        (dict(block_size=0), "model.block_size must be at least 1, got 0"),
        (dict(mlp_chunk=-1), "model.mlp_chunk must be at least 0, got -1"),
        (
            dict(positions=[dict(name="linear", factor=math.inf)]),
            "positions[0] (linear).factor: must be >= 1 and finite, got inf",
        ),
        (
            dict(positions=[dict(name="longrope", short_factor=[1.0] * 4, long_factor=[1, 2, 3, math.inf])]),
            "positions[0] (longrope).long_factor[3]: must be > 0 and finite, got inf",
        ),
        (
            dict(positions=[dict(name="mixed", choices=[[], [dict(name="yarn", factor=2.0, beta_fast=math.inf)]])]),
            "choices[1][0] (yarn).beta_fast: must be > 0 and finite, got inf",
        ),
        (dict(head_dim=2, positions=[dict(name="ntk", factor=2.0)]), "frequencies or gain of ntk are not finite"),
        (
            dict(positions=[dict(name="yarn", factor=2.0, beta_fast=1.0, beta_slow=2.0)]),
            "positions[0] (yarn): beta_fast must be at least beta_slow, got beta_fast 1 and beta_slow 2",
        ),
        (
            dict(positions=[dict(name="yarn_wavelength", factor=2.0, beta_fast=1.0, beta_slow=2.0)]),
            "(yarn_wavelength): beta_fast must be at least beta_slow",
        ),
        (
            dict(positions=[dict(name="dynamic_yarn", beta_fast=1.0, beta_slow=2.0)]),
            "(dynamic_yarn): beta_fast must be at least beta_slow",
        ),
        (
            dict(positions=[dict(name="yarn_paper", factor=2.0, alpha=32.0, beta=32.0)]),
            "(yarn_paper): beta must be more than alpha",
        ),
        (
            dict(positions=[dict(name="llama3", factor=2.0, low_freq_factor=4.0)]),
            "(llama3): high_freq_factor must be more than low_freq_factor",
        ),
        (
            dict(positions=[dict(name="dynamic", factor=2.0), dict(name="llama3", factor=2.0, low_freq_factor=4.0)]),
            "positions[1] (llama3): high_freq_factor must be more than low_freq_factor",
        ),
    ],
)
def test_wrong_configs_say_so_before_anything_is_traced(changes, message):
    with pytest.raises(ConfigError) as error:
        build(ModelConfig, dataclasses.asdict(TINY) | changes, "model")
    assert message in str(error.value)


def test_a_truth_value_is_no_size_and_a_window_may_be_infinite():
    with pytest.raises(ConfigError, match="model.num_layers must be a whole number, got True"):
        dataclasses.replace(TINY, num_layers=True)
    assert dataclasses.replace(TINY, positions=(dict(name="sliding_window", window=math.inf),)).num_layers == 2
