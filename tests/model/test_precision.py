"""matmul_precision reaches every matmul of training, evaluation and decoding, gradients included, and is said."""

import jax
import jax.numpy as jnp
import pytest

from giraffe_jax.config import ConfigError, build
from giraffe_jax.inference import generation, scoring
from giraffe_jax.model import Cache, ModelConfig, init_params, lora
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import MeshConfig, make_mesh
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.optim import OptimConfig
from giraffe_jax.training.step import eval_step, init_state, make_update, train_step

MODEL = dict(vocab_size=64, d_model=16, d_mlp=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
             original_len=16)  # fmt: skip
PRECISION = jax.lax.Precision
# Biases with matmuls of their own, and two bands.
EVERY = [dict(name="t5"), dict(name="fire"), dict(name="rerope", window=4)]


def precisions(jaxpr):
    """The precision of every dot_general in a jaxpr and in all that it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found += precisions(inner) if hasattr(inner, "eqns") else []
    return found


def training(model, params, adapters=None):
    optim = OptimConfig(lr=1e-3, muon_lr=None if adapters else 1e-3)  # Muon multiplies matrices too
    data = dict(sources=[], seq_len=16, batch_size=2)
    config = build(TrainConfig, dict(data=data, steps=1, lora=adapters, optim=dict(lr=1e-3, muon_lr=optim.muon_lr)))
    rows = jnp.ones((2, 16), jnp.int32)
    batch = dict(tokens=rows, targets=rows, weights=rows * 1.0, positions=rows * 1.0, segments=rows)
    update = make_update(optim, 1, config.lora)
    state = jax.eval_shape(lambda params: init_state(params, config), params)
    return train_step.trace(state, batch, model.bind(), update, model=model, accumulate=2), eval_step.trace(
        params, batch, model.bind(), model=model
    )


def programs(model, params, *, adapters=None):
    """The jaxprs of all programs that are made of a model."""
    rows, e = jnp.ones((2, 16), jnp.int32), model.bind(16.0)
    cache = Cache.init(model, 2, 24, raw=True)
    yield from training(model, params, adapters)
    here = e.at(jnp.zeros((2, 16)))
    yield scoring._score.trace(model, params, rows, here, rows)
    yield generation._prefill.trace(model, params, rows, rows[:, 0], here, capacity=24, raw=True)
    yield generation._step.trace(model, params, rows[:, 0], e.at(jnp.zeros((2, 1))), cache)


SLOW = pytest.mark.slow  # every pair of devices, attention and positions is in one of the others


@pytest.mark.parametrize(
    ("devices", "attention", "scaling"),
    [
        pytest.param(1, "dense", (), id="1-dense-plain"),
        pytest.param(8, "blockwise", (), id="8-blockwise-plain"),
        pytest.param(8, "dense", EVERY, id="8-dense-biases and bands"),
        pytest.param(1, "blockwise", EVERY, id="1-blockwise-biases and bands"),
        pytest.param(8, "dense", (), id="8-dense-plain", marks=SLOW),
        pytest.param(1, "blockwise", (), id="1-blockwise-plain", marks=SLOW),
        pytest.param(1, "dense", EVERY, id="1-dense-biases and bands", marks=SLOW),
        pytest.param(8, "blockwise", EVERY, id="8-blockwise-biases and bands", marks=SLOW),
    ],
)
def test_every_matmul_of_a_float32_model_is_exact(devices, attention, scaling):
    model = build(ModelConfig, MODEL | dict(attention=attention, block_size=8, positions=scaling, mlp_chunk=8))
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    adapters = None if scaling else dict(rank=2)
    if adapters:
        params = jax.eval_shape(lambda p: lora.add(p, LoraConfig(rank=2), jax.random.key(0)), params)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
        for program in programs(model, params, adapters=adapters):
            found = precisions(program.jaxpr)
            assert len(found) > 8 and set(found) == {(PRECISION.HIGHEST, PRECISION.HIGHEST)}


def test_the_key_says_which_and_bfloat16_leaves_it_to_the_backend():
    for keys, want in (
        (dict(dtype="bfloat16"), PRECISION.DEFAULT),
        (dict(dtype="bfloat16", matmul_precision="highest"), PRECISION.HIGHEST),
        (dict(matmul_precision="high"), PRECISION.HIGH),
        (dict(matmul_precision="default"), PRECISION.DEFAULT),
    ):
        model = build(ModelConfig, MODEL | keys)
        params = jax.eval_shape(lambda key, m=model: init_params(m, key), jax.random.key(0))
        with jax.default_matmul_precision("float32"):  # what somebody has set by hand does not decide
            for program in programs(model, params):
                assert set(precisions(program.jaxpr)) == {(want, want)}, keys
    message = r"model\.matmul_precision: got 'tf32'; allowed are 'default', 'high', 'highest'"
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig, MODEL | dict(matmul_precision="tf32"), "model")


def test_adapters_are_merged_exactly_whatever_the_backend_does():
    params = {"kernel": jnp.zeros((1, 16, 16)), "lora": dict(a=jnp.ones((1, 16, 2)), b=jnp.ones((1, 2, 16)))}
    params["lora"]["scale"] = jnp.ones(1)
    with jax.default_matmul_precision("default"):
        assert set(precisions(jax.make_jaxpr(lora.merge)(params).jaxpr)) == {(PRECISION.HIGHEST,) * 2}
