"""Rows whose tokens are on several devices: losses and gradients of one device, and the work divided."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from giraffe_jax import devices
from giraffe_jax.attention import attend_rows, dense, engine, place_of_rows, ranges, tpu, walk
from giraffe_jax.attention.columns import Columns, columns_of
from giraffe_jax.attention.context import How
from giraffe_jax.config import ConfigError
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.ops.loss import next_token_loss
from giraffe_jax.positions import Band
from giraffe_jax.sharding import AXES, MeshConfig, batch_sharding, make_mesh, paths
from tests.close import close

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


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # half the time to compile


@functools.partial(jax.jit, static_argnames="model", compiler_options=QUICK)
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
        # FIRE's last bias moves all logits of a query alike: its gradient is what rounding leaves of a sum.
        largest = np.abs(paths(want[1])[name.replace("b_out", "w_out")]).max()
        difference = np.abs(np.asarray(paths(got[1])[name]) - np.asarray(leaf)).max()
        assert difference <= 1e-5 * largest, f"{name} differs by {difference:.3g}; the largest is {largest:.3g}"


MESHES = [
    MeshConfig(fsdp=1, context=1), MeshConfig(fsdp=1, context=2), MeshConfig(fsdp=1, context=4),
    MeshConfig(fsdp=1, context=8), MeshConfig(fsdp=2, context=2, tensor=2), MeshConfig(fsdp=1, context=4, tensor=2),
]  # fmt: skip
ONE, TWO, FOUR, EIGHT, ALL_AXES, HEADS = MESHES
# One of each kind: plain attention, windows by layer, bands, a learned bias, a ring. The rest, 2 to 6 s each, is slow.
IN_CI = {
    ("plain", "all-gather"): FOUR, ("windows in layers", "all-gather"): EIGHT, ("dca", "all-gather"): ALL_AXES,
    ("fire", "all-gather"): HEADS, ("dca", "ring"): ALL_AXES,
}  # fmt: skip


def cases():
    """Each method by both ways on all meshes, most of them slow."""
    ways: list[How] = ["all-gather", "ring"]
    for how in ways:
        for name in METHODS:
            for mesh in MESHES:
                sizes = " ".join(f"{axis}={n}" for axis, n in dataclasses.asdict(mesh).items() if n > 1)
                marks = () if mesh == IN_CI.get((name, how)) else (pytest.mark.slow,)
                yield pytest.param(name, mesh, how, marks=marks, id=f"{name}, {sizes or 'one device'}, {how}")


@pytest.mark.parametrize(("name", "mesh", "how"), cases())
def test_devices_that_share_rows_are_one(name, mesh, how):
    same(on(mesh, name, dataclasses.replace(MODEL, context=how)), by_one(name))


def test_a_leak_between_documents_is_seen(monkeypatch):
    """What the test above compares does depend on segments: with one document a row, it is another loss."""
    want, place = by_one("plain"), Columns.place
    monkeypatch.setattr(Columns, "place", lambda self, _: place(self, place_of_rows(None, (B, T))))
    leaking = dataclasses.replace(MODEL, block_size=9)  # a model that is not compiled yet
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        same(on(MeshConfig(fsdp=1, context=4), "plain", leaking), want)


BANDS: dict[str, tuple[Band, ...]] = {"causal": (), "near, far": (Band(high=11), Band(low=11, keys=30))}


TILES = {"gpu": ranges.Tiles(*[ranges.Tile(16, 16, 4, 1)] * 3), "tpu": tpu.Tiles(*[tpu.Tile(16, 16)] * 2)}


@pytest.mark.parametrize("how", ["all-gather", "ring"])
@pytest.mark.parametrize(("name", "on"), [("causal", "gpu"), ("near, far", "gpu"), ("near, far", "tpu")])
def test_a_kernel_on_a_part_of_the_queries_is_dense_attention(name, on, how, monkeypatch):
    """Interpreted: output and gradients of packed rows."""
    monkeypatch.setattr(engine, "INTERPRET", True)
    monkeypatch.setattr(engine, "_tiles", lambda *_: TILES[on])
    if on == "tpu":
        monkeypatch.setattr(devices, "target", lambda real=devices.target: real()._replace(platform="tpu"))
    keys, bands = jax.random.split(jax.random.key(1), 4), BANDS[name]
    width = 64 if on == "tpu" else 8
    q, k, v, d_out = (jax.random.normal(key, (B, T, n, width)) for key, n in zip(keys, (4, 2, 2, 4), strict=True))
    place, count = place_of_rows(jnp.asarray(batch()["segments"]), (B, T)), max(1, len(bands))

    def divided(q, k, v):
        columns = columns_of(batch=B, tokens=T, heads=(4, 2))
        q, k, v = (columns.spread(x) for x in (q, k, v))
        about = dict(place=columns.place(place), bands=bands, implementation="pallas", how=how)
        return columns.restore(attend_rows((q,) * count, (k,) * count, v, **about))

    def pulled(run, *inputs):
        out, pull = jax.vjp(run, *inputs)
        return out, pull(d_out)

    want = pulled(
        lambda q, k, v: dense((q,) * count, (k,) * count, v, q_place=place, k_place=place, bands=bands)[0], q, k, v
    )
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, context=2, tensor=2), jax.devices()[:4])):
        found = jax.jit(lambda *inputs: pulled(divided, *inputs), compiler_options=QUICK)(q, k, v)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(got, expected, 256)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_zigzag_order(parts):
    """Device i has stretches i and 2 C - 1 - i, and what is restored is what was spread."""
    stretches = np.repeat(np.arange(2 * parts), 3)[None]
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, context=parts), jax.devices()[:parts])):
        columns = columns_of(batch=1, tokens=6 * parts, heads=(1, 1))
        found = jax.jit(columns.spread)(stretches)
        assert (jax.jit(columns.restore)(found) == stretches).all()
    want = [[i] * 3 + [2 * parts - 1 - i] * 3 for i in range(parts)]
    assert (np.asarray(found).reshape(parts, 6) == want).all()


def visited(mesh, segments, monkeypatch, how="all-gather"):
    """Returns how many pairs of blocks of one key head each device multiplies in a forward pass of one layer."""
    seen = collections.Counter()
    walked = walk.Walk.over_keys

    def counted(self, row, i, update, carry):
        start, stop, *_ = (x[0, row, i] for x in self.visits)
        device = jax.lax.axis_index("context") if mesh.context > 1 else 0
        jax.debug.callback(lambda blocks, at: seen.update({int(at): int(blocks)}), stop - start, device)
        return walked(self, row, i, update, carry)

    monkeypatch.setattr(walk.Walk, "over_keys", counted)
    monkeypatch.setattr(walk, "ROWS", 16)  # a block of queries is 8 tokens, as one of keys is
    x = jnp.ones((*segments.shape, 1, 8))
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.context])):

        def run(x):
            columns = columns_of(batch=len(segments), tokens=segments.shape[1], heads=(2, 1))
            place = columns.place(place_of_rows(segments, segments.shape))
            q = columns.spread(jnp.repeat(x, 2, axis=2))
            return attend_rows((q,), (x,), x, place=place, implementation="blockwise", block_size=8, how=how)

        jax.block_until_ready(jax.jit(run)(x))
    jax.effects_barrier()
    return seen


def test_the_work_is_divided_evenly(monkeypatch):
    """Four devices that share four rows do what four devices with a row each do, and all do as much."""
    one = jnp.ones((4, 256), jnp.int32)
    apart = visited(MeshConfig(fsdp=1), one[:1], monkeypatch)
    assert apart == {0: 32 * 33 // 2}  # of 32 blocks of queries, the n-th sees n
    for how in ("all-gather", "ring"):
        monkeypatch.undo()
        assert visited(MeshConfig(fsdp=1, context=4), one, monkeypatch, how) == dict.fromkeys(range(4), apart[0])


H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")


def test_what_runs_and_what_a_header_says_of_it(monkeypatch):
    model = dataclasses.replace(MODEL, attention="auto", head_dim=64, dtype="bfloat16")
    monkeypatch.setattr(engine.cudnn, "missing", lambda head_dim: None)

    def said(tokens=512, *, on=None, batch=2, tensor=1, **changes):
        with use_abstract_mesh(AbstractMesh((1, 1, 4, tensor), AXES, abstract_device=on)):
            return engine.described(dataclasses.replace(model, **changes), batch=batch, tokens=tokens)

    assert said() == "blockwise, 1 band, context 4 by all-gather"
    assert said(context="ring", attention="blockwise") == "blockwise, 1 band, context 4 by ring"
    assert said(64) == "dense, 1 band, context 4 shares memory but not work: few tokens"
    assert said(500) == (
        "blockwise, 1 band, context 4 shares memory but not work: 500 tokens a row do not divide into 8 stretches, two "
        "for each device of mesh.context"
    )
    assert said(tensor=4).endswith("not work: 2 rows and 2 key heads do not divide over 1 x 4 devices")
    whole_row = "(cudnn: tokens of a row on several devices (mesh.context)"
    assert said(on=H100) == f"pallas, 1 band, context 4 by all-gather {whole_row})"
    biased = said(on=H100, positions=METHODS["alibi"])
    assert biased.startswith("blockwise, 1 band, context 4 by all-gather")
    assert "pallas: a bias on logits of a row on several devices (mesh.context)" in biased
    with pytest.raises(ConfigError, match=r'"pallas" does not work here: 500 tokens a row .* mesh.context'):
        said(500, on=H100, attention="pallas")
