"""Which implementations run follows from the devices that are traced for, those that this machine does not have too."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from giraffe_jax import devices
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.ops import choose, cpu, linear
from giraffe_jax.ops.loss import next_token_loss
from giraffe_jax.sharding import MeshConfig, make_mesh

MODEL = ModelConfig(
    vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=5, num_kv_heads=5, head_dim=8, original_len=32
)
TOKENS = jnp.zeros((7, 160), jnp.int32)
BY_HAND = ("linear", "gated", "rms_norm", "nll_and_gradients")  # of ops/cpu.py


def absent(platform: str, **axes: int) -> Any:
    """A mesh of chips of another kind than this machine's."""
    chip = AbstractDevice(device_kind=f"some {platform}", num_cores=None, platform=platform)
    shape = dict(data=1, fsdp=1, context=1, tensor=1) | axes
    return use_abstract_mesh(
        AbstractMesh(tuple(shape.values()), tuple(shape), (AxisType.Auto,) * 4, abstract_device=chip)
    )


def present(count: int) -> Any:
    return jax.set_mesh(make_mesh(MeshConfig(fsdp=count), jax.devices()[:count]))


def scans(function: Callable[..., Any], *inputs: Any) -> set[int]:
    """Returns the lengths of all loops in a program that is traced for the current mesh; nothing is computed."""
    return {int(n) for n in re.findall(r"\blength=(\d+)", str(jax.make_jaxpr(lambda *x: function(*x))(*inputs)))}


def gradient(params):
    def loss(params):
        hidden, _ = Llama(MODEL).apply({"params": params}, TOKENS, MODEL.bind().at(jnp.zeros(TOKENS.shape)))
        return next_token_loss(hidden, unembedding(params), TOKENS, jnp.ones(TOKENS.shape))[0]

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(
    ("where", "platform", "devices_of_mesh", "one_cpu"),
    [
        (contextlib.nullcontext, "cpu", None, True),
        (lambda: present(1), "cpu", None, True),
        (lambda: present(8), "cpu", 8, False),
        (lambda: absent("cpu"), "cpu", None, True),
        (lambda: absent("tpu"), "tpu", None, False),
        (lambda: absent("tpu", fsdp=4, tensor=2), "tpu", 8, False),
        (lambda: absent("cuda"), "gpu", None, False),
    ],
    ids=["no mesh", "one CPU", "8 CPUs", "an absent CPU", "an absent TPU", "8 absent TPUs", "an absent GPU"],
)
def test_the_mesh_decides(where, platform, devices_of_mesh, one_cpu):
    """Outside a traced function and inside."""
    found = []
    with where():
        found.append((devices.target(), choose.choose()))
        jax.make_jaxpr(lambda x: found.append((devices.target(), choose.choose())) or x)(0)
    for target, kernels in found:
        assert target.platform == platform
        assert (target.mesh and target.mesh.size) == devices_of_mesh
        assert choose.choose(target) == kernels
        assert {kernels.linear, kernels.mlp, kernels.norm, kernels.loss} == ({"cpu"} if one_cpu else {"xla"})
        assert (kernels.remat, kernels.heads) == (("matmuls", "in turn") if one_cpu else ("all", "at once"))


def test_a_program_for_an_absent_tpu_has_no_piece_of_a_cpus(monkeypatch):
    """A model's gradient, traced for this CPU and for a TPU: who is called, and which loops there are."""
    called = set()
    for name in BY_HAND:
        run = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, name=name, run=run, **k: called.add(name) or run(*a, **k))
    params = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0)))
    called.clear()
    here = scans(gradient, params)
    assert called == set(BY_HAND)
    called.clear()
    with absent("tpu"):
        there = scans(gradient, params)
    assert not called
    assert {7, 5} <= here and not {7, 5} & there  # rows and heads of attention, in turn on a CPU alone


def test_a_cast_that_stays_in_its_layer_is_the_same_cast(monkeypatch):
    """Values of all kinds, with ties between two bfloat16 numbers, and the gradient; other dtypes pass."""
    ties = jnp.asarray([0x3F808000, 0x3F818000, 0xBF808001], jnp.uint32)
    values = jnp.concatenate(
        [
            jnp.asarray([0.0, -0.0, 1e-40, 3e38, jnp.inf, -jnp.inf, jnp.nan]),
            jax.lax.bitcast_convert_type(ties, jnp.float32),
        ]
    )
    monkeypatch.setattr(choose, "ONE_CPU", dataclasses.replace(choose.ONE_CPU, casts="in the layer"))
    found, pull = jax.vjp(lambda x: linear.cast(x, jnp.bfloat16), values)
    assert found.dtype == jnp.bfloat16
    bits = jax.lax.bitcast_convert_type
    assert (bits(found, jnp.uint16) == bits(values.astype(jnp.bfloat16), jnp.uint16)).all()
    assert "optimization_barrier" in str(jax.make_jaxpr(lambda x: linear.cast(x, jnp.bfloat16))(values))
    (gradient,) = pull(jnp.full(values.shape, 1.5, jnp.bfloat16))
    assert gradient.dtype == jnp.float32 and (gradient == 1.5).all()
    assert linear.cast(values, jnp.float32) is values


def test_fire_works_on_as_many_queries_at_a_time_as_the_device_wants():
    """Of 64 queries with 2^11 keys: one at a time fills a core's cache, all of them are little for a TPU."""
    bias = MODEL.bind(scaling=(dict(name="fire", width=64),)).bias
    index = jnp.arange(2**11)

    def run(i, j):
        return bias(i, j, 5)

    i, j = index[:64, None], index[None, :]
    with absent("tpu", fsdp=8):
        there = scans(run, i, j)
    assert scans(run, i, j) == {64} and 64 not in there


def test_the_choice_is_static_says_itself_and_can_be_another(monkeypatch):
    assert str(choose.ELSEWHERE) == "linear, mlp, norm, loss by XLA"
    assert str(choose.ONE_CPU) == "linear, mlp, norm, loss by hand for one CPU"
    mixed = dataclasses.replace(choose.ONE_CPU, norm="xla")
    assert str(mixed) == "linear, mlp, loss by hand for one CPU; norm by XLA"
    run = jax.jit(lambda x, kernels: x + (kernels.norm == "xla"), static_argnums=1)
    assert (run(0, mixed), run(0, choose.ONE_CPU)) == (1, 0)
    monkeypatch.setattr(choose, "ONE_CPU", mixed)
    monkeypatch.setattr(cpu, "rms_norm", None)
    scans(gradient, jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0))))
