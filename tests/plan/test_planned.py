"""A plan's numbers by hand: a model's work, what attention visits, memory, what the compiler refuses."""

import importlib.util
import json
import re

import jax
import pytest

from giraffe_jax.cli import main
from giraffe_jax.cli.plan import ENVIRONMENT
from giraffe_jax.config import ConfigError, build
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan import absent_chips, compiled, hlo, work
from giraffe_jax.plan.chips import CHIPS, GIB
from giraffe_jax.plan.kernels import kernel_flops
from giraffe_jax.sharding import make_mesh
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.program import program, state_shapes

V, D, F, L, N, K, H = 64, 32, 48, 2, 4, 1, 8
SHAPE = dict(vocab_size=V, d_model=D, d_mlp=F, num_layers=L, num_heads=N, num_kv_heads=K, head_dim=H)
MATRICES = L * (2 * D * N * H + 2 * D * K * H + 3 * D * F) + V * D  # what a token is multiplied by
ALL = MATRICES + V * D + (2 * L + 1) * D


def config(rows=8, tokens=768, **keys):
    data = dict(sources=[dict(kind="synthetic")], seq_len=tokens, batch_size=rows)
    return build(TrainConfig, dict(data=data, steps=100) | keys)


def params(run, model):
    return state_shapes(run, model, make_mesh(devices=jax.devices()[:1])).params


def test_model_flops_are_the_formulas():
    """Every parameter 6 times a token, and 12 products of a head's width for each pair that is seen."""
    run, model = config(rows=2, tokens=10), ModelConfig(**SHAPE)
    pairs = 10 * 11 // 2
    want = 6 * ALL * 20 + 12 * L * N * H * 2 * pairs
    assert work.model_flops(run, model, params(run, model)) == want
    packed = 6 * ALL * 20 + 12 * L * N * H * 2 * (2 * 15)  # two documents of 5 tokens
    assert work.model_flops(run, model, params(run, model), 5) == packed


def test_frozen_weights_have_no_gradient_of_their_own():
    model = ModelConfig(**SHAPE)
    run = config(rows=1, tokens=1, lora=dict(rank=2, targets=("q",), train=()))
    adapters, scales = L * (D * 2 + 2 * N * H), L
    want = 4 * (ALL + adapters + scales) + 2 * adapters + 12 * L * N * H
    assert work.model_flops(run, model, params(run, model)) == want


@pytest.mark.parametrize(
    ("methods", "pairs"),
    [
        ((), 64 * 65 // 2),
        ((dict(name="sliding_window", window=8),), 8 * 64 - 8 * 7 // 2),
        ((dict(name="self_extend", window=16, group=4),), 64 * 65 // 2),  # two bands share them
    ],
)
def test_pairs_that_are_seen(methods, pairs):
    assert work.seen_pairs(ModelConfig(**SHAPE, positions=methods), 64) == pairs


@pytest.mark.parametrize(
    ("changes", "document", "blocks"),
    [  # 512 queries by 1,024 keys, or 256 by 256
        (dict(), None, 1 + 1 + 2 + 2),
        (dict(dtype="float32"), None, 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8),
        (dict(), 512, 4),  # a block of queries sees its own document
        (dict(positions=(dict(name="sliding_window", window=1.0),)), None, 4),
        (dict(positions=(dict(name="self_extend", window=512, group=4),)), None, 4 + 1 + 1 + 2 + 1),
    ],
)
def test_the_work_of_a_tpus_kernels_is_of_the_blocks_that_they_visit(changes, document, blocks):
    run = config(rows=8, tokens=2048, accumulate=2)
    model = ModelConfig(**SHAPE | dict(num_heads=4, num_kv_heads=2, head_dim=128, dtype="bfloat16") | changes)
    found = kernel_flops(run, model, dict(data=1, fsdp=2, context=1, tensor=2), document)
    rows_and_heads, pairs = 2 * 2, blocks * (512 * 1024 if model.dtype == "bfloat16" else 256 * 256)
    matmuls = dict(attention=2, attention_backward=5)
    assert found == {name: 2 * 128 * rows_and_heads * count * pairs for name, count in matmuls.items()}


@pytest.mark.parametrize(("how", "calls"), [("all-gather", 1), ("ring", 2)])
def test_devices_that_share_a_row_share_its_kernels_work(how, calls):
    """Of 8 x 4 blocks of 512 by 1,024 each of two devices visits 10 of the 20 below the diagonal, in so many calls."""
    model = ModelConfig(**SHAPE | dict(num_heads=4, num_kv_heads=2, head_dim=128, dtype="bfloat16", context=how))
    found = kernel_flops(config(rows=1, tokens=4096), model, dict(data=1, fsdp=1, context=2, tensor=1))
    assert found["attention_backward"] * calls == 2 * 5 * 128 * 4 * 10 * 512 * 1024


def test_the_blocks_that_attention_visits():
    """4 query heads share a key head: 384 tokens a block of queries. The first sees 12 blocks of 32 keys, the second
    24; documents of 96 tokens are seen as 12 blocks by each. Two loops for each block of queries."""
    model = ModelConfig(**SHAPE, block_size=32)
    assert work.data_trips(model, 768) == (12 + 24) / 2 / 2
    assert work.data_trips(model, 768, 96) == (12 + 12) / 2 / 2


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("full", 2)])
def test_what_a_small_llama_executes(remat, forwards):
    """Forward once, backward twice that, and attention's blocks: two products forward, five backward. Full remat runs
    the layers again, but for the last product of each, which no gradient needs."""
    run = config(mesh=dict(data=8, fsdp=1))
    model = ModelConfig(**SHAPE, attention="blockwise", block_size=32, remat=remat)
    mesh = make_mesh(run.mesh)
    text = program(run, model, mesh).lower(state_shapes(run, model, mesh)).compile().as_text()
    found = hlo.count(text, dict(mesh.shape), work.data_trips(model, 768))
    tokens = 768  # one row a device
    again = (forwards - 1) * 2 * tokens * (MATRICES - V * D - L * D * F)
    attention = L * K * (12 + 24) * 2 * (384 * N) * 32 * H  # of one product
    assert found.flops == 6 * MATRICES * tokens + again + attention * (2 * forwards + 5)
    assert found.recomputed == again + attention * 2 * (forwards - 1)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) "
            "exceeds available HBM (15.75G).",
            (int(16.5 * GIB), int(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm. Exceeded hbm",
            (int(20.25 * GIB), int(15.75 * GIB)),
        ),
        ("RESOURCE_EXHAUSTED: something else", (None, None)),
        ("INTERNAL: available HBM (15.75G)", (None, None)),
    ],
)
def test_the_compilers_refusal_is_read(message, found):
    assert compiled.exhausted(message) == found


def test_a_device_has_its_share_of_a_chip():
    assert CHIPS["v5p"].a_device() == CHIPS["v5p"]
    half, whole = CHIPS["tpu7x"].a_device(), CHIPS["tpu7x"]
    assert (half.flops, half.hbm_bytes) == (whole.flops / 2, 96 * GIB)


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5q:2x2", "Did you mean 'v5p'"),
        ("v5p", "as in v5p:2x2x2"),
        ("v5e:8", "as in v5e:2x4"),
        ("h100:8", "as in h100:1x8"),
    ],
)
def test_a_topology_that_is_none_is_refused(topology, said):
    with pytest.raises(ConfigError, match="--topology: got") as error:
        absent_chips(topology)
    assert said in str(error.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "giraffe-jax\[plan\]"'):
        absent_chips("v5p:2x2x1")


def write(folder, **keys):
    data = dict(sources=[dict(kind="text", path="/not/here")], seq_len=128, batch_size=8)
    values = dict(steps=1000, model=SHAPE, data=data) | keys
    (folder / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    return f"--config={folder / 'config.py'}"


def test_an_experiment_needs_a_variant_that_is_trained(tmp_path, capsys):
    train = dict(steps=1, data=dict(sources=[dict(kind="synthetic")], seq_len=128, batch_size=8))
    variants = [dict(name="plain"), dict(name="trained", train=train)]
    values = dict(name="x", source="s", variants=variants, tasks=[dict(name="passkey", lengths=[64])])
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    words = ["plan", f"--config={tmp_path / 'config.py'}", "--topology=v5p:2x2x1", "--variant=traned"]
    assert main(words) == 2
    assert "--variant: got 'traned'; trained variants: 'trained'. Did you mean 'trained'?" in capsys.readouterr().err


@pytest.fixture
def libtpu(monkeypatch):
    pytest.importorskip("libtpu")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_a_plan(tmp_path, capsys):
    # Sizes that a TPU pads by nothing.
    shape = dict(vocab_size=128, d_model=512, d_mlp=256, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=128)
    path = write(tmp_path, model=shape | dict(remat="full"), mesh=dict(fsdp=4))
    assert main(["plan", path, "--topology=v5p:2x2x1", "--json", "--price=2.5"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] and said["chips"] == 4 and said["remat"] == "full" and said["attention"].startswith("dense")
    # Float32: matrices in quarters, norms whole; Adam's two moments of each and its counters.
    matrices = 2 * 128 * 512 + 2 * (4 * 512 * 8 * 128 + 3 * 512 * 256)
    held = 4 * (matrices // 4 + 5 * 512)
    assert said["parameter_bytes"] == held
    assert 0 <= said["optimizer_bytes"] - 2 * held <= 16
    batch = 5 * 4 * 8 * 128 // 4
    assert abs(said["argument_bytes"] - 3 * held - batch) < 0.01 * held
    assert said["argument_bytes"] < said["peak_bytes"] < said["hbm_bytes"] == 95 * GIB
    assert said["executed_flops"] > said["model_flops"] > 0 < said["recomputed_flops"]
    assert sum(sum(by_axes.values()) for by_axes in said["collective_bytes"].values()) > 0
    assert {axes for by_axes in said["collective_bytes"].values() for axes in by_axes} == {"fsdp"}
    bound = said["step_seconds_bound"]
    assert bound == max(said[f"{part}_seconds"] for part in ("compute", "memory", "network"))
    assert said["tokens_per_second"] == pytest.approx(8 * 128 / bound / 4)
    assert said["dollars"] == pytest.approx(2.5 * 4 * 1000 * bound / 3600)


@pytest.mark.usefixtures("libtpu")
def test_what_does_not_fit_is_told_by_how_much(tmp_path, capsys):
    path = write(tmp_path, model=SHAPE | dict(vocab_size=2**20, d_model=4096), mesh=dict(fsdp=4))
    assert main(["plan", path, "--topology=v5e:2x2"]) == 1
    said = capsys.readouterr().out
    assert "does not fit: the compiler needs" in said and "of 15.75 GiB" in said


@pytest.mark.usefixtures("libtpu")
def test_slices_lie_along_data():
    mesh = make_mesh(config(mesh=dict(data=2, fsdp=4)).mesh, absent_chips("v5p:2x2x1", slices=2))
    assert [len({d.slice_index for d in row.flat}) for row in mesh.devices] == [1, 1]
    mesh = make_mesh(config(mesh=dict(fsdp=8)).mesh, absent_chips("v5p:2x2x1", slices=2))
    assert [d.slice_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4
    with pytest.raises(ConfigError, match="2 slices divide neither data=1 nor fsdp=1"):
        make_mesh(config(mesh=dict(fsdp=1, tensor=8)).mesh, absent_chips("v5p:2x2x1", slices=2))


@pytest.mark.usefixtures("libtpu")
def test_a_tpu_holds_no_second_copy_of_all_layers_weights():
    """What the compiled step has of all 5 layers' kernels is float32: parameters, moments and gradients."""
    run = config(tokens=128, mesh=dict(fsdp=4))
    shape = dict(vocab_size=128, d_model=512, d_mlp=256, num_layers=5, num_heads=8, num_kv_heads=8, head_dim=128)
    model = ModelConfig(**shape, dtype="bfloat16", remat="full", attention="dense")
    mesh = make_mesh(run.mesh, absent_chips("v5p:2x2x1"))
    text = compiled.without_cache(program(run, model, mesh).lower(state_shapes(run, model, mesh))).as_text() or ""
    dtypes = set(re.findall(r"(\w+)\[5,(?:128,256|256,128|128,8,128|8,128,128)\]", text))
    assert "f32" in dtypes and "bf16" not in dtypes


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=-1, context=2), dict(fsdp=-1, context=8), dict(fsdp=-1, context=2, tensor=8)]
)
@pytest.mark.parametrize("topology", ["v6e:16x16", "v5e:16x16", "v5p:4x4x4"])
@pytest.mark.usefixtures("libtpu")
def test_any_mesh_of_a_slices_chips_can_be_had(topology, sizes):
    """None of these sizes is that of an axis of the slice's torus."""
    from giraffe_jax import plan, sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), plan.absent_chips(topology))
    assert all(mesh.shape[axis] == size for axis, size in sizes.items() if size > 0)
