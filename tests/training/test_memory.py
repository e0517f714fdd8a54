"""What memory options leave alone, loss and gradient, and what each of them really keeps, runs again or moves."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import build
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.model.config import PARAM_AXES
from giraffe_jax.ops.loss import next_token_loss
from giraffe_jax.sharding import MeshConfig, batch_sharding, make_mesh, paths, shardings
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.optim import OptimConfig, optimizer
from giraffe_jax.training.step import init_state, make_update, train_step
from tests.close import close

BASE = ModelConfig(vocab_size=64, d_model=16, d_mlp=40, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
                   attention="blockwise", block_size=8)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 33)), jnp.int32)
POSITIONS = np.tile(np.arange(32, dtype=np.float32), (4, 1))
OPTIONS = {
    "full": dict(remat="full"),
    "save_matmuls": dict(remat="save_matmuls"),
    "save_attention": dict(remat="save_attention"),
    "offload": dict(remat="offload"),
    "offload_attention": dict(remat="offload_attention"),
    "offload_residual": dict(remat="offload_residual"),
    "mlp_chunk": dict(mlp_chunk=8),
    "mlp_chunk that does not divide": dict(mlp_chunk=12, remat="full"),
}


def loss(params, model, tokens=TOKENS[:, :-1], targets=TOKENS[:, 1:], positions=POSITIONS):
    hidden, _ = Llama(model).apply({"params": params}, tokens, model.bind().at(positions), jnp.ones_like(tokens))
    return next_token_loss(hidden, unembedding(params), targets, jnp.ones(targets.shape) / targets.size, chunk=16)[0]


@functools.cache
def plain():
    params = init_params(BASE, jax.random.key(0))
    return params, *jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, BASE)


def split(model, sizes):
    params, mesh = plain()[0], make_mesh(sizes)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings(params, PARAM_AXES, mesh))
        rows = (jax.device_put(x, batch_sharding(mesh)) for x in (TOKENS[:, :-1], TOKENS[:, 1:], POSITIONS))
        compiled = jax.jit(jax.value_and_grad(loss), static_argnums=1).lower(params, model, *rows).compile()
        rows = (jax.device_put(x, batch_sharding(mesh)) for x in (TOKENS[:, :-1], TOKENS[:, 1:], POSITIONS))
        return compiled, compiled(params, *rows)


def assert_same(value, gradient):
    _, want, want_gradient = plain()
    close(value, want, ulps=256)
    for name, leaf in paths(gradient).items():
        close(leaf, paths(want_gradient)[name], ulps=1024, what=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_do_not_change(name):
    model = dataclasses.replace(BASE, **OPTIONS[name])
    assert_same(*jax.jit(jax.value_and_grad(loss), static_argnums=1)(plain()[0], model))


SPLIT, SHARED = MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, context=2)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("mlp_chunk", SPLIT),
        pytest.param("offload", SHARED),
        pytest.param("mlp_chunk", SHARED, marks=pytest.mark.slow),
        pytest.param("offload", SPLIT, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_nor_do_they_on_eight_devices(name, sizes):
    assert_same(*split(dataclasses.replace(BASE, **OPTIONS[name]), sizes)[1])


def equations(jaxpr, times=1):
    """(primitive, output shapes, how often it runs) of every equation of a program, bodies of scans by their length."""
    for e in jaxpr.eqns:
        yield e, times
        inner = [*e.params.values(), *[x for v in e.params.values() if isinstance(v, tuple | list) for x in v]]
        for sub in inner:
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield from equations(sub, times * e.params.get("length", 1))


def runs(model, primitive, match=lambda e: True):
    jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(plain()[0], model)
    return sum(times for e, times in equations(jaxpr.jaxpr) if e.primitive.name == primitive and match(e))


def test_what_each_policy_runs_again():
    """Attention's forward has its own loop over query blocks: once in "save_attention", twice in "full"; the MLP's
    three products are run again in both."""

    def passes(remat):
        return runs(dataclasses.replace(BASE, remat=remat), "dot_general", lambda e: e.outvars[0].aval.shape[-1] == 40)

    assert passes("none") + 2 * BASE.num_layers == passes("full") == passes("save_attention") == passes("offload")


def test_what_each_policy_keeps():
    """The stacked [L B T D] residuals between the two scans over layers: on the device, or on the host."""

    def kept(remat):
        jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(plain()[0], dataclasses.replace(BASE, remat=remat))
        scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == BASE.num_layers]
        inner = scans[0].params["jaxpr"].out_avals  # what is stacked has an axis more outside; what is carried has not
        found = [v.aval for v, one in zip(scans[0].outvars, inner, strict=True) if v.aval.ndim > one.ndim]
        return {space: sum(math.prod(a.shape) for a in found if ("Host" in str(a.memory_space)) == (space == "host"))
                for space in ("host", "device")}  # fmt: skip

    residual = 3 * 4 * 32 * 16
    assert kept("full") == dict(host=0, device=residual)
    assert kept("offload") == dict(host=residual, device=0)
    attention = 3 * 4 * 32 * (4 * 8 + 4)
    assert kept("save_attention") == dict(host=0, device=residual + attention)
    assert kept("offload_attention") == dict(host=residual + attention, device=0)
    assert kept("offload_residual") == dict(host=residual, device=attention)
    products = 3 * 4 * 32 * (4 * 8 + 2 * 2 * 8 + 16 + 2 * 40)  # q, k and v, what attention adds, gate and up
    assert kept("none") == dict(host=0, device=residual + attention + products)  # on one CPU, as here
    assert kept("save_matmuls") == kept("none")


def test_devices_that_share_heads_share_what_layers_keep():
    """Of the residual stream [L B T D], 4 rows of 32 tokens, each of 2 x 4 devices keeps 2 rows of 8 tokens, and no
    device has more of it; of 30 tokens, which 4 does not divide, it keeps whole rows."""

    def kept(tokens):
        rows = (TOKENS[:, :tokens], TOKENS[:, 1 : tokens + 1], POSITIONS[:, :tokens])
        mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
        model = dataclasses.replace(BASE, num_kv_heads=4, remat="full", attention="dense")
        params = init_params(model, jax.random.key(0))
        with jax.set_mesh(mesh):
            params = jax.device_put(params, shardings(params, PARAM_AXES, mesh))
            rows = (jax.device_put(x, batch_sharding(mesh)) for x in rows)
            text = jax.jit(jax.grad(loss), static_argnums=1).lower(params, model, *rows).compile().as_text()
        return {int(count) for count in re.findall(r"f32\[3,2,(\d+),16\]", text)}

    assert kept(32) == {8}
    assert kept(30) == {30}


def test_moments_have_their_own_dtypes():
    """Parameters of any dtype have float32 second moments; the first are what the config says."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain()[0])
    for dtype in ("float32", "bfloat16"):
        moments = paths(optimizer(OptimConfig(mu_dtype=dtype), 5).init(params))
        assert {str(x.dtype) for name, x in moments.items() if "/mu/" in name} == {dtype}
        assert {str(x.dtype) for name, x in moments.items() if "/nu/" in name} == {"float32"}


def test_bfloat16_moments_move_as_float32_ones_do():
    model = dataclasses.replace(BASE, attention="dense")
    rows = dict(tokens=TOKENS[:, :-1], targets=TOKENS[:, 1:], positions=POSITIONS)
    rows |= dict(weights=np.ones((4, 32), np.float32), segments=np.ones((4, 32), np.int32))
    ends = []
    for dtype in ("float32", "bfloat16"):
        optim = dict(lr=1e-3, warmup_steps=0, mu_dtype=dtype)
        config = build(TrainConfig, dict(data=dict(sources=[], seq_len=32, batch_size=4), steps=3, optim=optim))
        state = init_state(jax.tree.map(jnp.copy, plain()[0]), config)
        for _ in range(3):
            state, metrics = train_step(state, rows, model.bind(), make_update(config.optim, 3), model=model)
        ends.append(metrics["loss"])
    assert ends[0] != ends[1] and abs(ends[0] - ends[1]) < 1e-3
