"""The bench counts what the papers count, and measures a model that ships with the package."""

import json
import os
import re

import numpy as np
import pytest

from giraffe_jax import bench, hf
from giraffe_jax.bench import ours
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.model import ModelConfig

LLAMA2_7B = ModelConfig(
    vocab_size=32000, d_model=4096, d_mlp=11008, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128
)
# What every token multiplies with in Llama 2 7B (arXiv:2307.09288): 6,738,415,616 parameters without the embedding
# table and the 65 norms of 4,096.
MATRICES = 6_738_415_616 - 32000 * 4096 - 65 * 4096


def test_model_flops_are_the_closed_form():
    train, causal = bench.flops(LLAMA2_7B, bench.Job("train", 4096)), 4096 * 4097 / 2
    attention = 32 * 4 * 32 * 128 * causal
    assert train == pytest.approx(3 * (2 * MATRICES * 4096 + attention), rel=1e-3)
    assert bench.flops(LLAMA2_7B, bench.Job("attention_grad", 4096)) == pytest.approx(3 * attention / 32, rel=1e-3)
    # Eight documents of 500 tokens and one of 96 attend within themselves; the matrices are the same.
    packed = bench.flops(LLAMA2_7B, bench.Job("packed", 4096))
    within = 32 * 4 * 32 * 128 * (8 * 500**2 + 96**2) / 2
    assert packed == pytest.approx(3 * (2 * MATRICES * 4096 + within), rel=1e-4)
    # Every row counts; of a prompt the unembedding sees the last token alone.
    rows = bench.flops(LLAMA2_7B, bench.job("prefill:1024x8"))
    assert rows == pytest.approx(8 * bench.flops(LLAMA2_7B, bench.job("prefill:1024")))
    assert bench.flops(LLAMA2_7B, bench.job("nll:1024x8")) - rows == pytest.approx(8 * 1023 * 2 * 32000 * 4096)
    # A token decoded after 4,096 reads 2 * 32 * 4096 * 4 bytes of cache for each of them: 2 GiB in bfloat16.
    cache = bench.moved(LLAMA2_7B, bench.Job("decode", 4096), 2) / bench.DECODED - 2 * MATRICES
    assert cache == pytest.approx(2**31, rel=0.01)


@pytest.mark.parametrize(
    "text, says",
    [
        ("forwards:8", "forward"),
        ("train:", "train:2048"),
        ("train:8x", "train:256x8"),
        ("nll:9999999x9999", "at most"),
        ("bands:2048", "bands:rerope:2048"),
        ("bands_grad:rerope:", "bands_grad:rerope:2048"),
        ("bands:reropes:64", "Did you mean 'rerope'"),
        ("bands:rerope,windows=3:64", "window"),
        ("bands:rerope,window:64", "KEY=NUMBER"),
        ("train:64@cudn", "Did you mean 'cudnn'"),
    ],
)
def test_jobs_are_refused_by_name(text, says):
    with pytest.raises(ConfigError, match=says):
        bench.job(text)


@pytest.mark.parametrize("text", ["bands:self_extend:32768", "bands_grad:rerope,window=256:64x2", "train:8x4@pallas"])
def test_jobs_are_written_as_they_are_read(text):
    assert str(bench.job(text)) == text
    assert bench.job(str(bench.job(text))) == bench.job(text)


def test_what_stands_beside_a_job():
    assert bench.job("bands_grad:dca:64x2@pallas").peer is None
    assert str(bench.job("bands_grad:dca:64x2@pallas").plain) == "attention_grad:64x2"
    assert str(bench.job("train:64@pallas").peer) == "train:64" and bench.job("train:64").plain is None
    assert str(bench.job("attention:64@cudnn").plain) == "attention:64" and bench.job("attention:64").plain is None


@pytest.mark.parametrize(
    "method, sees",
    [
        ("self_extend,window=40,group=4", lambda i, j: j <= i),
        ("dca,chunk_size=96,local_size=16", lambda i, j: j <= i),
        ("rerope,window=50", lambda i, j: j <= i),
        ("streaming,window=60,sinks=4", lambda i, j: (i - j < 60) | (j < 4)),
        ("lm_infinite,window=33,num_global=10", lambda i, j: (i - j < 33) | (j < 10)),
        ("sliding_window", lambda i, j: i - j < 512),  # a quarter of the 2,048 tokens of training
        ("chunked,chunk_size=100.0", lambda i, j: i // 100 == j // 100),
        ("alibi", lambda i, j: j <= i),
    ],
)
def test_flops_in_bands_are_those_of_the_pairs_that_are_seen(method, sees):
    i, j = np.mgrid[:700, :700]
    seen = int((sees(i, j) & (j <= i)).sum())
    assert bench.flops(LLAMA2_7B, bench.job(f"bands:{method}:700x2")) == 2 * 4 * 32 * 128 * seen
    assert bench.flops(LLAMA2_7B, bench.job(f"bands_grad:{method}:700")) == 3 * 4 * 32 * 128 * seen


def test_a_method_without_bands_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="yarn.*attention:64"):
        bench.run(bench.shape(TINY), [bench.job("bands:yarn:64")], ["giraffe_jax"])


TINY = "1b,num_layers=2,d_model=32,d_mlp=48,vocab_size=64,num_heads=4,num_kv_heads=2,head_dim=8,original_len=64"


def test_shapes_are_a_name_and_keys():
    assert bench.shape("1b,num_layers=4").num_layers == 4
    assert bench.shape("1b").d_mlp == 5632
    for text, says in [("2b", "1b"), ("1b,layers=4", "layers"), ("1b,num_layers", "KEY=NUMBER")]:
        with pytest.raises(ConfigError, match=says):
            bench.shape(text)


@pytest.mark.oracle
def test_a_shape_has_as_many_parameters_in_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(hf.config_to_json(bench.shape("1b"))))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(tmp_path))
    layer = 2 * 2048 + 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 5632
    want = 32000 * 2048 + 20 * layer + 2048
    assert sum(p.numel() for p in model.parameters()) == want == bench.num_params(bench.shape("1b"))


def settings(tmp_path, text, **more):
    """What a process that measures a job of a tiny model with random weights is told."""
    what, path = bench.job(text), tmp_path / "model"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf.config_to_json(bench.shape(TINY))))
    found = dict(path=str(path), random=True, platform="cpu", threads=len(os.sched_getaffinity(0)), remat="none")
    found |= dict(dtype="bfloat16", param_dtype="bfloat16", kind=what.kind, length=what.length, rows=what.rows)
    return found | dict(method=what.method, kernel=what.kernel) | more


TRAINS = dict(param_dtype="float32", remat="save_attention")


@pytest.mark.parametrize(
    "text, more, says",
    [
        ("train:160x2", TRAINS, "weights float32, computed in bfloat16; attention blockwise, 1 band; remat save_att"),
        ("packed:640@dense", TRAINS, "attention dense"),
        ("nll:64", {}, "all in bfloat16; attention dense"),
        ("bands_grad:dca:160", {}, "attention blockwise, 3 bands"),
        ("bands:streaming:160x2@dense", {}, "attention dense, 2 bands"),
        ("attention_grad:160", {}, "attention blockwise, 1 band"),
    ],
)
def test_our_side_runs_and_says_what_it_did(text, more, says, tmp_path):
    prepare, about = ours.prepare(settings(tmp_path, text, **more))
    prepare()()
    assert says in about["note"]
    assert about.get("params") in (None, bench.num_params(bench.shape(TINY)))


@pytest.mark.parametrize(
    "text, more, says",
    [
        ("train:32x2", TRAINS, "weights float32, autocast to bfloat16.*gradient checkpointing; fused AdamW"),
        ("packed:640", dict(param_dtype="float32"), "position_ids"),
        ("nll:32", {}, "all in bfloat16"),
        ("attention_grad:32", {}, "scaled_dot"),
    ],
)
@pytest.mark.oracle
def test_their_side_runs_and_says_what_it_did(text, more, says, tmp_path):
    pytest.importorskip("transformers")
    from giraffe_jax.bench import theirs

    prepare, about = theirs.prepare(settings(tmp_path, text, **more))
    prepare()()
    assert re.search(says, about["note"])
    assert about.get("params") in (None, bench.num_params(bench.shape(TINY)))


@pytest.mark.oracle
def test_a_loss_in_chunks_is_the_loss(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from giraffe_jax.bench import theirs

    path = settings(tmp_path, "nll:50")["path"]
    model = theirs._model(path, torch.float32, "cpu", random=True)
    tokens = torch.arange(100).reshape(2, 50) % 64
    monkeypatch.setattr(theirs, "CHUNK", 16)
    whole = theirs._nll(model, tokens, torch.no_grad)().reshape(2, 49)
    chunks = theirs._nll_in_chunks(model, tokens, torch.no_grad)()
    parts = [x.reshape(2, -1) for x in chunks]
    assert len(parts) == 4
    np.testing.assert_allclose(torch.cat(parts, 1).numpy(), whole.numpy(), rtol=1e-5)


def measured(asked, fails=(), clock=None):
    """A stand-in for the processes: notes what each is asked, takes a minute each, and fails where told."""

    def worker(settings, limit=None):
        if settings["side"] == "machine":
            return dict(platform="gpu", device_kind="NVIDIA H100", matmul_flops=7.84e14, bandwidth=3e12)
        asked.append((settings, limit))
        if clock is not None:
            clock[0] += 60
        if (settings["side"], settings["kind"]) in fails:
            return dict(error="RESOURCE_EXHAUSTED: out of memory")
        slow = 2.0 if settings["side"] == "transformers" else 1.0 + settings["kind"].startswith("bands")
        about = dict(seconds=slow, peak_bytes=2e9, note=f"remat {settings['remat']}")
        return about | dict(compile_seconds=9.0 if len(asked) < 6 else 1.0)

    return worker


def test_a_failure_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "rows.jsonl"
    monkeypatch.setattr(bench, "_worker", measured(asked, fails=[("transformers", "train")]))
    jobs = ["train:16384x2", "attention:64", "attention:64@pallas", "bands:dca:64"]
    words = ["bench", f"--shape={TINY}", "--dtype=bfloat16", "--runs=2", f"--out={out}", "--jobs", *jobs]
    assert main(words) == 1
    # Bands have no peer, and the peer knows no kernels of ours: six measurements a round.
    assert len(asked) == 12
    of_training = [s for s, _ in asked if s["kind"] == "train"]
    assert all(s["param_dtype"] == "float32" and s["remat"] == "save_attention" for s in of_training)
    assert {s["param_dtype"] for s, _ in asked if s["kind"] != "train"} == {"bfloat16"}
    said = capsys.readouterr().out
    table = {line.split(" | ")[0]: line.split(" | ")[1:] for line in said.splitlines() if line.startswith("| ")}
    cells = table["| train:16384x2"]
    assert cells[0] == "1" and cells[1] == "32,768" and cells[5] == "-" and cells[-2:] == ["9.0 s", "1.0 s |"]
    assert table["| attention:64"][5] == "2" and table["| attention:64"][10] == "2.00"
    assert table["| bands:dca:64"][5] == "-" and table["| bands:dca:64"][12] == "2.00"
    assert "NVIDIA H100 (gpu)" in said and "matmul peak 784 TFLOP/s in bfloat16" in said
    assert "- failed: transformers, train:16384x2: RESOURCE_EXHAUSTED: out of memory" in said
    machine, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert machine["device_kind"] == "NVIDIA H100" and machine["jax"] and len(rows) == 12
    assert [row["error"] for row in rows if row["job"].startswith("train") and row["side"] == "transformers"]
    assert main(["bench", "--read", str(out)]) == 0
    assert capsys.readouterr().out.strip() == said[said.index("NVIDIA H100 (gpu)") :].strip()


def test_a_file_that_is_not_the_benchs_is_refused(tmp_path):
    machine = dict(platform="gpu", device_kind="A", matmul_flops=1.0, bandwidth=1.0)
    for name, kind in [("a", "A"), ("b", "B")]:
        bench.write(tmp_path / name, machine | dict(device_kind=kind), [])
    (tmp_path / "c").write_text("[1]\n")
    with pytest.raises(ConfigError, match="measured on B, not on A"):
        bench.read([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ConfigError, match="not a file of"):
        bench.read([tmp_path / "c"])


def test_nothing_begins_after_the_last_minute(monkeypatch):
    asked, clock = [], [0.0]
    monkeypatch.setattr(bench, "_worker", measured(asked, clock=clock))
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    jobs = [bench.job("attention:64"), bench.job("attention_grad:64")]
    machine, rows = bench.run(bench.shape(TINY), jobs, ["giraffe_jax"], runs=2, minutes=1.5)
    assert [row.get("left", False) for row in rows] == [False, False, True, True]
    assert [limit for _, limit in asked] == [150.0, 90.0]  # what is left, and a minute to end in
    assert "not begun, since the minutes were over: giraffe_jax attention:64 (run 2)" in bench.table(machine, rows)


def test_another_number_of_parameters_is_an_error(monkeypatch):
    asked = []
    worker = measured(asked)
    monkeypatch.setattr(bench, "_worker", lambda *a: worker(*a) | dict(params=7))
    rows = bench.run(bench.shape(TINY), [bench.job("nll:64")], ["giraffe_jax"], runs=1)[1]
    assert "7 parameters" in rows[0]["error"]


def test_a_process_that_dies_says_why():
    row = bench._worker(dict(side="giraffe_jax", threads=1, path="no/such/model", kind="nll"))
    assert "KeyError" in row["error"]


@pytest.mark.slow
def test_the_command_measures_a_packaged_model(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["bench", "--source=giraffe-mini", "--alone", "--jobs", "forward:128", "--runs=1", f"--out={out}"]
    assert main(words) == 0
    machine, row = (json.loads(line) for line in out.read_text().splitlines())
    assert 0 < row["fraction"] < 1 and 50e6 < row["peak_bytes"] < 4e9
    # The two layers' matrices, 4 of 128 x 128 and 3 of 128 x 384 in each, two operations a number, on 128 tokens.
    assert row["seconds"] > 2 * 425_984 * 128 / machine["matmul_flops"]
    assert "| forward:128 |" in capsys.readouterr().out
