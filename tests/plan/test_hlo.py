"""The walk of a compiled program against counts by hand."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from giraffe_jax.cli.plan import ENVIRONMENT
from giraffe_jax.plan import hlo
from giraffe_jax.plan.groups import groups_of
from giraffe_jax.sharding import MeshConfig, make_mesh

M, K, N = 16, 32, 24
ONE = 2 * M * K * N  # FLOPs of a [M K] x [K N] product


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def text_of(function, *arguments) -> str:
    return str(jax.jit(function).lower(*arguments).compile().as_text())


def counted(function, *arguments, **settings):
    return hlo.count(text_of(function, *arguments), **settings)


def test_a_product_and_its_gradients():
    x, w = array(M, K), array(K, N)
    assert counted(jnp.dot, x, w).flops == ONE
    both = counted(lambda x, w, d: jax.vjp(jnp.dot, x, w)[1](d), x, w, array(M, N))
    assert both.flops == 2 * ONE
    batched = counted(lambda x, w: jnp.einsum("bhmk,bhkn->bhmn", x, w), array(3, 5, M, K), array(3, 5, K, N))
    assert batched.flops == 15 * ONE
    assert counted(lambda x: jnp.sin(x) + x, x).flops == 0


def test_loops_count_as_often_as_they_run():
    def scanned(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    square = 2 * M * K * K
    assert counted(scanned, array(M, K), array(7, K, K)).flops == 7 * square

    def nested(x, w):
        return lax.scan(lambda x, w: (lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x), None), x, w)[0]

    assert counted(nested, array(M, K), array(3, K, K)).flops == 15 * square


def by(step, start, stop):
    def loop(x, w):
        def body(carry):
            i, x = carry
            return i + step, jnp.tanh(x @ w)

        return lax.while_loop(lambda carry: carry[0] < stop, body, (start, x))[1]

    return loop


@pytest.mark.parametrize(("step", "start", "stop", "trips"), [(2, 0, 8, 4), (2, 1, 8, 4), (3, 0, 10, 4), (2, 0, 7, 4)])
@pytest.mark.parametrize("said", [True, False], ids=["XLA says", "by the counter"])
def test_a_loop_that_counts_by_more_than_one(step, start, stop, trips, said):
    text = text_of(by(step, start, stop), array(M, K), array(K, K))
    if not said:  # as a TPU's compiler leaves it
        text = text.replace("known_trip_count", "nothing")
    found = hlo.count(text)
    assert found.flops == trips * 2 * M * K * K and found.data_loops == 0


def test_a_loop_as_long_as_data_say_takes_what_it_is_told():
    def loop(x, w, n):
        return lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w), x)

    found = counted(loop, array(M, K), array(K, K), array(dtype=jnp.int32), data_trips=2.5)
    assert found.flops == 2.5 * 2 * M * K * K and found.data_loops == 1


def test_what_a_remat_policy_runs_again_is_known():
    """A layer of two products: two forward, four backward, and the first two once more where nothing of it is kept."""

    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w), None

    def gradients(layer):
        return jax.grad(lambda x, w: jnp.sum(lax.scan(layer, x, w)[0] ** 2), argnums=(0, 1))

    x, w = array(M, K), array(3, K, K)
    square = 2 * M * K * K
    plain = counted(gradients(layer), x, w)
    assert (plain.flops, plain.recomputed) == (3 * 6 * square, 0)
    again = counted(gradients(jax.checkpoint(layer, prevent_cse=False)), x, w)
    assert (again.flops, again.recomputed) == (3 * 8 * square, 3 * 2 * square)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_products_with_what_is_there(stride):
    """Padding by one: of the 3 x 3 window, places at the border have 2 of 3 inside in each direction."""

    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers)

    def inside(size):
        return sum(0 <= i + tap - 1 < size for i in range(0, size, stride) for tap in range(3))

    found = counted(convolve, array(2, 8, 10, 3), array(3, 3, 3, 5))
    assert found.flops == 2 * 2 * 3 * 5 * inside(8) * inside(10)


def test_a_batched_product_written_as_a_dilated_convolution():
    """As a TPU's compiler writes one: of the 4 x 4 pairs of places all but 4 fall into holes."""
    text = """HloModule m

ENTRY %main (a: f32[4,16,32], b: f32[4,32,24]) -> f32[4,16,24] {
  %a = f32[4,16,32]{2,1,0:T(8,128)} parameter(0)
  %b = f32[4,32,24]{2,1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = f32[4,16,24]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""
    assert hlo.count(text).flops == 4 * 2 * 16 * 32 * 24


MESH = dict(data=1, fsdp=4, context=1, tensor=2)


def sharded(function, arguments, specs, out):
    mesh = make_mesh(MeshConfig(**MESH))
    given = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for x, spec in zip(arguments, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        made = jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec(*out))).lower(*given).compile()
    return hlo.count(made.as_text(), MESH)


def test_an_all_gather_of_weights():
    """Each device has a quarter of the [32 24] float32 weights and sends it to the three others."""
    found = sharded(jnp.dot, (array(M, K), array(K, N)), (("fsdp",), ("fsdp",)), ("fsdp",))
    assert found.collectives == {("all-gather", "fsdp"): K * N * 4 / 4}
    assert found.sent == 3 * K * N * 4 / 4
    assert found.flops == ONE / 4


@pytest.mark.parametrize(
    ("function", "kind", "size", "sent"),
    [
        (lambda x: jnp.tile(lax.psum(x, "fsdp"), 1), "all-reduce", 16 * 4, 2 * 3 / 4),
        (lambda x: lax.psum_scatter(x, "fsdp", tiled=True), "reduce-scatter", 16 * 4, 3 / 4),
        (lambda x: lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]), "collective-permute", 16 * 4, 1),
        (lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True), "all-to-all", 16 * 4, 3 / 4),
    ],
)
def test_collectives_by_hand(function, kind, size, sent):
    mesh = make_mesh(MeshConfig(**MESH))
    spec = PartitionSpec("fsdp")
    x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=NamedSharding(mesh, spec))
    run = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))
    found = hlo.count(run.lower(x).compile().as_text(), MESH)
    assert found.collectives == {(kind, "fsdp"): size}
    assert found.sent == size * sent


def test_collectives_in_loops_count_as_often():
    mesh = make_mesh(MeshConfig(**MESH))
    spec = PartitionSpec("fsdp")

    def ring(x):
        pairs = [(i, (i + 1) % 4) for i in range(4)]
        return lax.fori_loop(0, 3, lambda _, x: jnp.sin(lax.ppermute(x, "fsdp", pairs)), x)

    x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=NamedSharding(mesh, spec))
    run = jax.jit(jax.shard_map(ring, mesh=mesh, in_specs=spec, out_specs=spec))
    assert hlo.count(run.lower(x).compile().as_text(), MESH).collectives == {("collective-permute", "fsdp"): 3 * 64}


@pytest.mark.parametrize(
    ("written", "size", "axes"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", 4, "fsdp"),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2, "tensor"),
        ("replica_groups=[4,2]<=[8]", 2, "tensor"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4, "fsdp"),
        ("replica_groups=[1,8]<=[8]", 8, "fsdp+tensor"),
        ("replica_groups={}", 8, "fsdp+tensor"),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4, "fsdp"),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(4)2}", 2, "tensor"),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", 2, "fsdp"),
        ("replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}", 1, ""),
    ],
)
def test_groups_of_devices_are_named_by_mesh_axes(written, size, axes):
    assert groups_of(f", channel_id=1, {written}, dimensions={{0}}", MESH) == (size, axes)


def test_a_kernel_says_its_flops_or_is_named():
    text = """HloModule m

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"42"}}
  ROOT %l = f32[8]{0} custom-call(%k), custom_call_target="tpu_custom_call", backend_config={}
}
"""
    found = hlo.count(text)
    assert found.flops == 42 and found.uncounted == ("l",)
    assert hlo.count(text.replace("%l", "%l.7"), kernels=dict(l=100.0)) == dataclasses.replace(
        found, flops=142, uncounted=()
    )


tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@tpu
def test_a_tpus_program(monkeypatch):
    """A scan of products with weights over fsdp, of which a TPU's compiler makes convolutions."""
    from giraffe_jax.plan.compiled import absent_chips, without_cache

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    mesh = make_mesh(MeshConfig(fsdp=4), absent_chips("v5p:2x2x1"))

    def place(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def scanned(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    rows, width, layers = 1024, 2048, 3
    with jax.set_mesh(mesh):
        made = jax.jit(scanned).lower(place((rows, width), "fsdp"), place((layers, width, width), None, "fsdp"))
        text = str(without_cache(made).as_text())
    found = hlo.count(text, dict(mesh.shape))
    assert "convolution" in text and "dot(" not in text
    assert found.flops == layers * 2 * rows * width * width / 4
    weights = layers * width * width * 2
    assert found.sent == weights / 4 * 3  # each device's quarter goes to three others
    assert {axes for _, axes in found.collectives} == {"fsdp"}
    assert found.data_loops == 0
