"""The kernels for TPUs: interpreted on a CPU, against dense attention, one on a chip's memory and two cores that are
simulated; with libtpu, compiled for absent chips."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from giraffe_jax import devices, positions
from giraffe_jax.attention import attend_rows, choose, dense, engine, place_of_rows, tpu
from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.config import ConfigError
from giraffe_jax.positions import Band, Range
from giraffe_jax.sharding import MeshConfig, make_mesh
from tests.attention.test_kernels import BANDS, SEGMENTS, B, K, N, T, arrays, by_definition
from tests.close import close
from tests.ops.test_choose import absent

TILES = tpu.Tiles(tpu.Tile(32, 16), tpu.Tile(16, 32))
TABLE = jax.random.normal(jax.random.key(9), (N, T))


@jax.jit
def by_kernel(q, k, v, d_out, place, bands, bias=None):
    """Returns (output, log-sum-exp, gradients); what comes back for the log-sum-exp is the sum of d_out."""
    seen = intervals(place, bands)
    out, lse = tpu.forward(q, k, v, seen, tile=TILES.forward, bias=bias, interpret=True)
    dot = jnp.sum((d_out * out).astype(jnp.float32), -1) - jnp.where(lse > MASKED, d_out.sum(-1), 0.0)
    return out, lse, tpu.backward(q, k, v, seen, lse, dot, d_out, tiles=TILES, bias=bias, interpret=True)


@pytest.mark.parametrize("name", BANDS)
def test_the_kernels_and_their_gradients_are_dense_attention(name):
    bands, place = BANDS[name], place_of_rows(SEGMENTS, (B, T))
    inputs = (*arrays(len(bands) or 1), place, bands)
    found, want = by_kernel(*inputs), by_definition(*inputs)
    close(found[0], want[0])
    close(found[1], want[1])
    for got, expected in zip(jax.tree.leaves(found[2]), jax.tree.leaves(want[2]), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("name", BANDS)
def test_a_bias_by_distance_and_its_gradient_are_dense_attention(name):
    bands, place = BANDS[name], place_of_rows(SEGMENTS, (B, T))
    inputs = (*arrays(len(bands) or 1), place, bands, TABLE)
    found, want = by_kernel(*inputs), by_definition(*inputs)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)
    assert jnp.all(found[2][3][:, 60:] == 0)  # the longest document has 60 tokens


def test_gradients_by_copies_that_end_when_they_are_waited_for():
    """Memory is not a number until it is written, a copy is done when its end is awaited, two cores have two heads
    each. The first two blocks of queries see nothing; the last two blocks of keys are seen by the last one alone, which
    is visited twice on end."""
    place = place_of_rows(jnp.repeat(jnp.asarray([[1, 2]], jnp.int32), jnp.array([32, 96]), 1), (1, 128))
    q, k, v, d_out = jax.random.normal(jax.random.key(0), (4, 1, 128, 4, 8))
    bands = (Band(low=32),)
    table = jax.random.normal(jax.random.key(1), (4, 128))
    out, lse, want = by_definition((q,), (k,), v, d_out, place, bands, table)
    dot = jnp.sum(d_out * out, -1) - jnp.where(lse > MASKED, d_out.sum(-1), 0.0)
    simulated = pltpu.InterpretParams(num_cores_or_threads=2)
    run = jax.jit(functools.partial(tpu.backward, tiles=tpu.Tiles(TILES.forward, TILES.forward), interpret=simulated))
    found = run((q,), (k,), v, intervals(place, bands), lse, dot, d_out, bias=table)
    assert jnp.all(found[0][0][:, :64] == 0) and jnp.any(found[0][0][:, 64:] != 0)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("bias", [None, TABLE], ids=["", "bias"])
@pytest.mark.parametrize("also", [(Range(high=9.0),), (Range(high=9.0), Range(high=1.0, chunk=14.0))])
def test_windows_and_chunks(also, bias):
    inputs = (*arrays(1), place_of_rows(None, (B, T)), (Band(also=also),), bias)
    found, want = by_kernel(*inputs), by_definition(*inputs)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("bias", [None, TABLE], ids=["", "bias"])
def test_sixteen_bit_floats_lose_what_their_rounding_loses(bias):
    bands, place = BANDS["near, far"], place_of_rows(SEGMENTS, (B, T))
    inputs = arrays(2, "bfloat16")
    out, _, gradients = by_kernel(*inputs, place, bands, bias)
    want, _, expected = by_definition(*jax.tree.map(lambda x: x.astype("float32"), inputs), place, bands, bias)
    assert out.dtype == "bfloat16" and {x.dtype for x in jax.tree.leaves(gradients[:3])} == {jnp.dtype("bfloat16")}
    assert bias is None or gradients[3].dtype == "float32"
    for got, exact in zip(jax.tree.leaves((out, gradients)), jax.tree.leaves((want, expected)), strict=True):
        # Probabilities and the gradients of logits are rounded to 8 bits before they are multiplied.
        assert np.linalg.norm(got.astype("float32") - exact) < 2**-7 * np.linalg.norm(exact)


def test_numbers_are_data_and_blocks_that_are_not_seen_are_not_computed():
    """Two windows and two packings by one program; what is not a number stays where nobody looks."""
    (q, k, v, d_out), programs = arrays(1), set()
    for segments, high in ((SEGMENTS, 7.0), (jnp.ones_like(SEGMENTS), 12.0)):
        place, bands = place_of_rows(segments, (B, T)), (Band(high=high),)
        # No query of the block that begins at 64 sees a key before 52; the block of keys at 16 ends at 32.
        spoiled = jnp.where(jnp.arange(T)[None, :, None, None] < 32, jnp.nan, v)
        found = by_kernel(q, k, spoiled, d_out, place, bands)[0][:, 64:]
        close(found, dense(q, k, v, q_place=place, k_place=place, bands=bands)[0][:, 64:])
        programs.add(by_kernel._cache_size())
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("tokens", "head_dim", "block"),
    [(4096, 128, 1024), (4096, 256, 512), (1500, 128, 512), (640, 64, 128), (75, 64, 128)],
)
def test_rows_are_padded_by_less_than_an_eighth_or_to_one_block(tokens, head_dim, block):
    assert tpu.tiles("bfloat16", head_dim, tokens).forward.k == block
    assert -tokens % block <= tokens / 8 or block == 128


SHAPE: dict[str, Any] = dict(tokens=512, heads=(4, 2, 64), dtype="bfloat16", batch=8)


def test_what_is_chosen_and_why():
    with absent("tpu"):
        for change in ({}, dict(bands=BANDS["sinks"]), dict(dtype="float32"), dict(heads=(4, 2, 256))):
            assert choose("auto", **SHAPE | change) == ("pallas", ())
        assert choose("auto", **SHAPE | dict(tokens=64)).name == "dense"
        assert choose("auto", bias=bias_of("t5"), **SHAPE) == ("pallas", ())
        long = dict(tokens=200_000, heads=(4, 2, 64))
        assert choose("auto", **SHAPE | long) == ("pallas", ())
        assert choose("auto", bias=bias_of("t5"), **SHAPE | long).passed == (
            "pallas: a bias on logits of 200,000 tokens; on a TPU it takes 196,608 with 2 heads on a key head",
        )
        by_more = choose("auto", bias=bias_of("fire"), **SHAPE)
        assert str(by_more) == "blockwise (pallas: a bias on logits by more than distance)"
        assert choose("auto", **SHAPE | dict(heads=(4, 2, 96))).passed == (
            "pallas: heads of 96; on a TPU it takes 64, 128 and 256",
        )
        with pytest.raises(
            ConfigError, match='"pallas" does not work here: float16; on a TPU it takes bfloat16 and float32'
        ):
            choose("pallas", **SHAPE | dict(dtype="float16"))
        with pytest.raises(ConfigError, match='"cudnn" does not work here: made for NVIDIA GPUs, not for tpu'):
            choose("cudnn", **SHAPE)
    with absent("tpu", fsdp=4, tensor=2):
        assert choose("auto", **SHAPE) == ("pallas", ())
    with absent("tpu", context=2):
        assert choose("auto", **SHAPE) == ("pallas", ())
        assert choose("auto", bias=bias_of("t5"), **SHAPE).passed == (
            "pallas: a bias on logits of a row on several devices (mesh.context)",
        )
        assert "do not divide into 4 stretches" in choose("auto", **SHAPE | dict(tokens=SHAPE["tokens"] + 2)).passed[0]


def bias_of(*names: str) -> Any:
    """Returns the bias of these methods in one layer; what learns is drawn, so that no two heads have the same."""
    e = positions.bind([dict(name=name) for name in names], head_dim=64, theta=1e4, original_len=T, num_layers=1)
    e = positions.with_learned(e.at(jnp.arange(T)[None] * 1.0), lambda item: item.init(jax.random.key(2), N))
    return jax.tree.map(lambda x: jax.random.uniform(jax.random.key(x.size), x.shape, minval=0.2), e.bias)


@pytest.mark.parametrize("names", [(), ("alibi",), ("kerple",), ("t5", "alibi")], ids="-".join)
def test_rows_and_heads_on_a_mesh(names, monkeypatch):
    """Four devices: rows over fsdp, heads over tensor; output and gradients, of a bias too, are dense attention's."""
    monkeypatch.setattr(engine, "INTERPRET", True)
    monkeypatch.setattr(engine, "_tiles", lambda *_: TILES)
    monkeypatch.setattr(devices, "target", lambda real=devices.target: real()._replace(platform="tpu"))
    keys, place = jax.random.split(jax.random.key(0), 4), place_of_rows(SEGMENTS, (B, T))
    q, k, v, d_out = (jax.random.normal(key, (B, T, n, 64)) for key, n in zip(keys, (N, K, K, N), strict=True))
    bias = bias_of(*names) if names else None

    def loss(run):
        by_parts = jax.value_and_grad(lambda q, k, v, bias: jnp.vdot(run(q, k, v, bias), d_out), (0, 1, 2, 3))
        return jax.jit(by_parts)(q, k, v, bias)

    want = loss(lambda q, k, v, bias: dense((q,), (k,), v, q_place=place, k_place=place, bias=bias)[0])
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
        found = loss(lambda q, k, v, bias: attend_rows((q,), (k,), v, place=place, bias=bias, implementation="pallas"))
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_a_loss_and_its_gradient_compile_for_absent_chips(topology, monkeypatch):
    """What interpretation does not show: the kernels lower and fit, and no heads move between devices."""
    pytest.importorskip("libtpu")
    for name, value in dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1").items():
        monkeypatch.setenv(name, value)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), topologies.get_topology_desc(topology, platform="tpu").devices)
    bands, batch, bias = BANDS["near, far"], ("data", "fsdp"), bias_of("kerple")

    def of(*shape, dtype: Any = jnp.bfloat16, spec=PartitionSpec(batch, None, "tensor")):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def loss(q, k, v, bias, segments):
        out = attend_rows(q, k, v, place=place_of_rows(segments, segments.shape), bands=bands, bias=bias)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    q, k = of(2, 256, 4, 128), of(2, 256, 2, 128)
    segments = of(2, 256, dtype=jnp.int32, spec=PartitionSpec(batch))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
        text = gradient.lower((q, q), (k, k), k, jax.eval_shape(lambda: bias), segments).compile().as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not re.search("all-gather|all-to-all|collective-permute", text)
