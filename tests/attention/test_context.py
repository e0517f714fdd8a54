"""Rows whose tokens are on several devices: losses and gradients of one device, and the work divided."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import context
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.ops.loss import next_token_loss
from giraffe_jax.sharding import MeshConfig, batch_sharding, make_mesh, paths

B, T = 2, 64
MODEL = ModelConfig(
    vocab_size=32, d_model=32, d_mlp=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, original_len=32,
    attention="blockwise", block_size=8,
)  # fmt: skip
METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "yarn": (dict(name="yarn", factor=2.0),),
    "self_extend": (dict(name="self_extend", window=8, group=4),),
    "dca": (dict(name="dca", chunk_size=12, local_size=4),),
    "windows in layers": (dict(name="sliding_window", window=9, full_every=2),),
    "alibi": (dict(name="alibi"),),
    "ssmax": (dict(name="ssmax"),),
    "fire": (dict(name="fire"),),
    "dynamic": (dict(name="dynamic", factor=2.0),),
}


def batch():
    """Two rows: documents of 40 and 24 tokens; of 5 and 50, and 9 tokens of padding."""
    sizes = ([(1, 40), (2, 24)], [(1, 5), (2, 50), (0, 9)])
    segments = np.array([np.repeat(*zip(*row, strict=True)) for row in sizes], np.int32)
    positions = np.array([np.concatenate([np.arange(n) for _, n in row]) for row in sizes], np.int32)
    tokens, targets = np.random.default_rng(0).integers(0, 32, (2, B, T))
    weights = np.float32(segments > 0)
    return dict(tokens=tokens, targets=targets, positions=positions, segments=segments, weights=weights)


@functools.partial(jax.jit, static_argnames="model")
def gradient(params, parts, e, *, model):
    """Returns the loss of a batch and its gradient, as a training step computes them."""

    def loss(params):
        at = e.at(parts["positions"])
        hidden, _ = Llama(model).apply({"params": params}, parts["tokens"], at, parts["segments"])
        return next_token_loss(hidden, unembedding(params), parts["targets"], parts["weights"])[0]

    return jax.value_and_grad(loss)(params)


def inputs(name):
    """Returns (parameters, the method's Encoding)."""
    model = dataclasses.replace(MODEL, positions=METHODS[name])
    return init_params(model, jax.random.key(0)), model.bind()


def on(mesh, name, model=MODEL):
    """Returns what `gradient` does on a mesh of as many devices as it takes."""
    params, e = inputs(name)
    placed = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.context * mesh.tensor])
    with jax.set_mesh(placed):
        params = jax.device_put(params, jax.NamedSharding(placed, jax.P()))
        parts = {key: jax.device_put(x, batch_sharding(placed)) for key, x in batch().items()}
        return gradient(params, parts, e, model=model)


@functools.cache
def by_one(name):
    """Returns what `gradient` does on one device with dense attention."""
    params, e = inputs(name)
    return gradient(params, batch(), e, model=dataclasses.replace(MODEL, attention="dense"))


def same(got, want):
    """Asserts equality to 1e-5 of the largest gradient of each parameter, and of the loss."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for name, leaf in paths(want[1]).items():
        difference = np.abs(np.asarray(paths(got[1])[name]) - np.asarray(leaf)).max()
        assert difference <= 1e-5 * np.abs(leaf).max(), name


@pytest.mark.parametrize("name", METHODS)
def test_four_devices_a_row_are_one(name):
    same(on(MeshConfig(fsdp=1, context=4), name), by_one(name))
