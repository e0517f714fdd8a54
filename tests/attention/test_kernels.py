"""The kernels and what chooses them: the Pallas one interpreted on a CPU, against dense attention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from giraffe_jax import devices
from giraffe_jax.attention import attend_rows, choose, dense, engine, place_of_rows, ranges
from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.model import Llama, ModelConfig, init_params
from giraffe_jax.positions import Band, Range
from giraffe_jax.sharding import MeshConfig, make_mesh
from tests.close import close

B, T, N, K, H = 2, 75, 4, 2, 24  # neither a multiple of a block nor a power of two
TILE = ranges.Tile(32, 16, 4, 1)
SEGMENTS = jnp.asarray([[1] * 40 + [2] * 35, [1] * 5 + [2] * 60 + [0] * 10], jnp.int32)
BANDS: dict[str, tuple[Band, ...]] = {
    "causal": (),
    "near, far": (Band(high=11), Band(low=11)),
    "sinks": (Band(high=11), Band(low=11, keys=3)),
    "chunks": (Band(high=1, chunk=13), Band(low=1, high=2, chunk=13), Band(low=2, chunk=13)),
    "far alone": (Band(low=20),),  # some queries see nothing
}


def arrays(bands: int, dtype="float32", seed=0):
    keys = jax.random.split(jax.random.key(seed), 2 * bands + 2)
    q = tuple(jax.random.normal(key, (B, T, N, H), dtype) for key in keys[:bands])
    k = tuple(jax.random.normal(key, (B, T, K, H), dtype) for key in keys[bands : 2 * bands])
    return q, k, jax.random.normal(keys[-2], (B, T, K, H), dtype), jax.random.normal(keys[-1], (B, T, N, H), dtype)


@jax.jit
def by_kernel(q, k, v, d_out, place, bands, bias=None):
    """Returns (output, log-sum-exp, gradients) of the Pallas kernels; what comes back for the log-sum-exp is the sum of
    d_out."""
    seen = intervals(place, bands)
    out, lse = ranges.forward(q, k, v, seen, tile=TILE, bias=bias, interpret=True)
    dot = jnp.sum((d_out * out).astype(jnp.float32), -1) - jnp.where(lse > MASKED, d_out.sum(-1), 0.0)
    tiles = ranges.Tiles(*[TILE] * 3)
    return out, lse, ranges.backward(q, k, v, seen, lse, dot, d_out, tiles=tiles, bias=bias, interpret=True)


@jax.jit
def by_definition(q, k, v, d_out, place, bands, bias=None):
    def run(q, k, v, bias):
        add = None if bias is None else lambda i, j, num_heads: bias[:, jnp.maximum(i - j, 0)[:, 0]].swapaxes(0, 1)
        return dense(q, k, v, q_place=place, k_place=place, bands=bands, bias=add)

    (out, lse), pull = jax.vjp(run, q, k, v, bias)
    return out, lse, pull((d_out, jnp.where(lse > MASKED, d_out.sum(-1), 0.0)))


@pytest.mark.parametrize("name", BANDS)
def test_the_kernel_and_its_gradients_are_dense_attention(name):
    bands, place = BANDS[name], place_of_rows(SEGMENTS, (B, T))
    inputs = (*arrays(len(bands) or 1), place, bands)
    found, want = by_kernel(*inputs), by_definition(*inputs)
    close(found[0], want[0])
    close(found[1], want[1])
    for got, expected in zip(jax.tree.leaves(found[2]), jax.tree.leaves(want[2]), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("name", ["causal", "sinks"])
def test_a_bias_by_distance_and_its_gradient_are_dense_attention(name):
    bands, place = BANDS[name], place_of_rows(SEGMENTS, (B, T))
    inputs = (*arrays(len(bands) or 1), place, bands, jax.random.normal(jax.random.key(9), (N, T)))
    found, want = by_kernel(*inputs), by_definition(*inputs)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)
    assert jnp.all(found[2][3][:, 60:] == 0)  # the longest document has 60 tokens


@pytest.mark.parametrize("also", [(Range(high=9.0),), (Range(high=9.0), Range(high=1.0, chunk=14.0))])
def test_windows_and_chunks(also):
    inputs = (*arrays(1), place_of_rows(None, (B, T)), (Band(also=also),))
    close(by_kernel(*inputs)[0], by_definition(*inputs)[0])


def test_sixteen_bit_floats_lose_what_their_rounding_loses():
    bands, place = BANDS["near, far"], place_of_rows(SEGMENTS, (B, T))
    inputs = arrays(2, "bfloat16")
    out, _, gradients = by_kernel(*inputs, place, bands)
    want, _, expected = by_definition(*jax.tree.map(lambda x: x.astype("float32"), inputs), place, bands)
    assert out.dtype == "bfloat16" and {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}
    for got, exact in zip(jax.tree.leaves((out, gradients)), jax.tree.leaves((want, expected)), strict=True):
        # Probabilities and the gradients of logits are rounded to 8 bits before they are multiplied.
        assert np.linalg.norm(got.astype("float32") - exact) < 2**-7 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernels_lower_for_a_gpu_that_is_not_here(dtype):
    """What interpretation does not show: every operation has a form in Triton. Four kernels, with bands and a bias."""
    q, k, v, d_out = jax.eval_shape(lambda: arrays(2, dtype))
    place, rows = place_of_rows(SEGMENTS, (B, T)), jax.ShapeDtypeStruct((B, T, N), "float32")
    tiles = ranges.tiles(dtype, H, bias=True)

    def run(q, k, v, d_out, lse, bias):
        seen = intervals(place, BANDS["near, far"])
        out, _ = ranges.forward(q, k, v, seen, tile=tiles.forward, bias=bias)
        return out, ranges.backward(q, k, v, seen, lse, lse, d_out, tiles=tiles, bias=bias)

    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=h100)):
        traced = jax.jit(run).trace(q, k, v, d_out, rows, jax.ShapeDtypeStruct((N, T), "float32"))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @") == 4


@pytest.fixture
def card(monkeypatch):
    """A CPU that says it is a GPU, and runs the Pallas kernels."""
    monkeypatch.setattr(engine, "INTERPRET", True)
    monkeypatch.setattr(devices, "target", lambda: devices.Target("gpu"))
    monkeypatch.setattr(engine.cudnn, "missing", lambda head_dim: None)


SHAPE: dict[str, Any] = dict(tokens=512, heads=(4, 2, 64), dtype="bfloat16")


def test_what_is_chosen_and_why(card):
    assert choose("auto", **SHAPE) == ("cudnn", ())
    assert choose("auto", **SHAPE | dict(tokens=64)) == ("dense", ())
    assert str(choose("auto", **SHAPE | dict(dtype="float32"))) == "pallas (cudnn: float32; it takes 16-bit floats)"
    assert str(choose("auto", bands=BANDS["near, far"], **SHAPE)) == "pallas (cudnn: 2 bands)"
    for also in ((Range(high=9.0),), (Range(high=1.0, chunk=9.0),)):
        assert str(choose("auto", bands=(Band(also=also),), **SHAPE)) == "pallas (cudnn: a window or chunks)"
    masked = (Band(mask=jax.tree_util.Partial(lambda i, j: i > j)),)
    assert choose("auto", bands=masked, **SHAPE).name == "blockwise"
    assert choose("auto", bias=lambda i, j, n: 0.0, **SHAPE).passed == (
        "cudnn: a bias on logits",
        "pallas: a bias on logits by more than distance",
    )
    alibi = dataclasses.replace(MODEL, positions=(dict(name="alibi"),)).bind().at(jnp.zeros((1, 2))).bias
    assert str(choose("auto", bias=alibi, **SHAPE)) == "pallas (cudnn: a bias on logits)"
    wide = SHAPE | dict(heads=(4, 2, 256))  # cuDNN could, but the packed rows beside it could not
    assert choose("auto", **wide).passed == ("cudnn: heads of 256; at most 128", "pallas: heads of 256; at most 128")
    with pytest.raises(
        ConfigError, match=r'model.attention: "cudnn" does not work here: 2 bands. "auto" takes one that does'
    ):
        choose("cudnn", bands=BANDS["near, far"], **SHAPE)


def test_on_a_cpu_kernels_of_gpus_are_refused():
    assert choose("auto", **SHAPE) == ("blockwise", ())
    for name, made_for in dict(cudnn="NVIDIA GPUs", pallas="NVIDIA GPUs and TPUs").items():
        with pytest.raises(ConfigError, match=f'"{name}" does not work here: made for {made_for}, not for cpu'):
            choose(name, **SHAPE)


def test_a_row_of_several_documents_is_not_given_to_cudnn(card, monkeypatch):
    """cuDNN's causal kernel knows no documents: which of the two runs is decided by the batch."""
    q, k, v, _ = arrays(1, "bfloat16")
    monkeypatch.setattr(engine.cudnn, "forward", lambda q, k, v: (jnp.full_like(q, 7.0), jnp.zeros(q.shape[:3])))
    run = jax.jit(lambda place: attend_rows(q, k, v, place=place, implementation="cudnn"))
    for segments in (None, jnp.ones_like(SEGMENTS), SEGMENTS):
        place = place_of_rows(segments, (B, T))
        want = dense(q, k, v, q_place=place, k_place=place)[0] if segments is SEGMENTS else jnp.full_like(q[0], 7.0)
        difference, want = ((x.astype("float32")) for x in (run(place) - want, want))
        assert np.linalg.norm(difference) < 2**-7 * np.linalg.norm(want)


MODEL = ModelConfig(
    vocab_size=32, d_model=32, d_mlp=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, original_len=32,
    positions=(dict(name="self_extend", window=8, group=4), dict(name="kerple")), remat="save_attention",
)  # fmt: skip


def test_a_model_by_kernel_on_a_mesh(monkeypatch):
    """Four devices: rows over fsdp, heads over tensor; the loss's gradient is that of blockwise on one device."""
    monkeypatch.setattr(engine, "INTERPRET", True)
    tokens = jax.random.randint(jax.random.key(1), (4, T), 0, 32)
    segments = jnp.concatenate([SEGMENTS, SEGMENTS])
    params = init_params(MODEL, jax.random.key(0))
    where = place_of_rows(segments, segments.shape).within.astype("float32")

    def gradient(attention, params):
        def loss(params):
            hidden, _ = Llama(dataclasses.replace(MODEL, attention=attention)).apply(
                {"params": params}, tokens, MODEL.bind().at(where), segments
            )
            return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size).reshape(hidden.shape)))

        return jax.jit(jax.value_and_grad(loss))(params)

    want = gradient("blockwise", params)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
        found = gradient("pallas", params)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 1024)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, context=2), jax.devices()[:4])):
        with pytest.raises(ConfigError, match="mesh.context"):
            gradient("pallas", params)


def test_check_kernels_says_what_runs_and_catches_a_leak(card, monkeypatch, capsys):
    """`giraffe check kernels` passes; with documents ignored by the kernel it fails."""
    command = ["check", "kernels", "sliding_window", "--tokens=130", "--dtype=float32"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("pallas (cudnn: float32; it takes 16-bit floats)") == 2
    monkeypatch.setattr(engine, "intervals", lambda place, bands: intervals(place_of_rows(None, (2, 130)), bands))
    assert main(command) == 1
