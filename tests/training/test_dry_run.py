"""A config is checked without its weights, tokenizer and text, and nothing is written."""

import dataclasses
import shutil

import pytest

from giraffe_jax import hf
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.data import DataConfig, SourceConfig, SyntheticConfig
from giraffe_jax.data.skip import SkipConfig
from giraffe_jax.loading import load, read_model
from giraffe_jax.model import ModelConfig
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import MeshConfig
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.dry import check_config
from giraffe_jax.training.loop import train
from giraffe_jax.training.optim import FrequencyConfig, OptimConfig
from tests.cli.test_cli import tiny_hf_directory
from tests.training.test_train import MODEL, settings

TEXT = dict(kind="text", path="/not/here")
DATA = dict(sources=[TEXT], seq_len=128, batch_size=8)
VALUES = dict(model=MODEL, data=DATA, steps=5)


def written(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def config_file(folder, values):
    (folder / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    return f"--config={folder / 'config.py'}"


def test_it_says_what_a_run_would_be_and_writes_nothing(tmp_path, capsys):
    path = config_file(tmp_path, VALUES | dict(mesh=dict(fsdp=8)))
    before = written(tmp_path)
    assert main(["train", path, f"--workdir={tmp_path / 'w'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for line in (
        "source: random weights",
        "trained: ",
        "positions: plain RoPE",
        "attention: dense",
        "mesh: data=1 fsdp=8",
        "batch: 8 x 128 = 1,024 tokens",
        "5 steps to 5, from the start",
        "memory a device: parameters ",
    ):
        assert line in said
    assert "not checked: config.tokenizer: none is named" in said
    assert "not checked: data.sources[0].path: /not/here is not here." in said
    written_since = [p for p in written(tmp_path) if p not in before and "__pycache__" not in p[0]]
    assert not [p for p in written_since if p[0] != str(tmp_path)]


def test_a_packaged_model_has_its_tokenizer():
    data = dict(sources=[dict(kind="synthetic")], seq_len=128, batch_size=8)
    checked = check_config(dict(source="giraffe-mini", steps=1, data=data))
    assert not [line for line in checked.missing if "tokenizer" in line]


def test_memory_is_of_arguments_by_hand(tmp_path, capsys):
    """300 Ki float32 and their two moments: 1.2 and 2.3 MiB."""
    path = config_file(tmp_path, VALUES | dict(model=MODEL | dict(vocab_size=9600), mesh=dict(fsdp=1)))
    assert main(["train", path, "--dry-run", "--config.mesh.data=8"]) == 0
    said = capsys.readouterr().out
    count = 2 * 9600 * 16 + 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 16) + 5 * 16
    assert f"parameters {4 * count / 2**20:.2f} MiB, optimizer {8 * count / 2**20:.2f} MiB" in said


def test_it_needs_no_workdir_but_train_does(tmp_path, capsys):
    path = config_file(tmp_path, VALUES)
    assert main(["train", path]) == 2
    assert "--workdir: missing; only --dry-run needs none" in capsys.readouterr().err
    assert main(["train", path, "--model=llama2_7b", f"--workdir={tmp_path / 'w'}"]) == 2
    assert "--model: only --dry-run takes it" in capsys.readouterr().err


def keys():
    """Every key of a training's config, as the path of its names."""
    found = [((), f.name) for f in dataclasses.fields(TrainConfig)]
    parts = dict(optim=OptimConfig, mesh=MeshConfig, lora=LoraConfig, frequencies=FrequencyConfig, data=DataConfig,
                 eval_data=DataConfig, model=ModelConfig)  # fmt: skip
    found += [((name,), f.name) for name, kind in parts.items() for f in dataclasses.fields(kind)]
    found += [(("data", "sources", 0), f.name) for f in dataclasses.fields(SourceConfig)]
    found += [(("data", "skip"), f.name) for f in dataclasses.fields(SkipConfig)]
    found += [(("data", "sources", 0, "synthetic"), f.name) for f in dataclasses.fields(SyntheticConfig)]
    return found


def test_a_typo_in_any_key_is_found():
    for path, name in keys():
        values = dict(VALUES) | dict(eval_data=dict(DATA), optim={}, mesh={}, lora={}, frequencies=dict(train="alone"))
        values["data"] = DATA | dict(sources=[dict(TEXT)], skip=dict(kind="pose", target_len=256))
        if "synthetic" in path:
            values["data"]["sources"] = [dict(kind="synthetic", synthetic={})]
        values["model"] = dict(MODEL)
        inner = values
        for part in path:
            inner = inner[part]
        inner[name + "x"] = inner.pop(name, 1)
        with pytest.raises(ConfigError, match=f"{name}x|{name}"):
            check_config(values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model=MODEL | dict(positions=[dict(name="yran")])), "Did you mean 'yarn'?"),
        (dict(model=MODEL | dict(param_dtype="bfloat16")), "config.model.param_dtype"),
        (dict(lora=dict(rank=17)), "config.lora.rank"),
        (dict(mesh=dict(fsdp=3)), "`giraffe plan --topology=...` checks it for other devices."),
        (dict(data=DATA | dict(batch_size=4)), "does not divide a micro-batch of 4"),
        (dict(data=DATA | dict(sources=[dict(kind="text")])), "data.sources[0].path: missing"),
        (dict(eval_data=DATA | dict(sources=[])), "data.sources: needs either sources"),
        (dict(model={}), "config.model"),
        (dict(source="/not/here/either"), "A folder with its config.json is enough"),
        (dict(model=MODEL | dict(attention="cudnn")), "made for NVIDIA GPUs"),
    ],
)
def test_what_train_would_refuse_is_refused(tmp_path, capsys, changes, said):
    values = VALUES | changes
    if "source" in changes:
        values["model"] = {}
    assert main(["train", config_file(tmp_path, values), "--dry-run"]) == 2
    assert said in capsys.readouterr().err.replace("model: missing", "config.model: missing")


def test_what_is_here_is_checked(tmp_path, tokenizer):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.bin").write_text("x")
    with pytest.raises(ConfigError, match="has no .*files"):
        check_config(VALUES | dict(data=DATA | dict(sources=[dict(kind="text", path=str(tmp_path / "docs"))])))
    with pytest.raises(ConfigError, match="model.vocab_size 100 is less than the tokenizer's 258"):
        check_config(VALUES | dict(tokenizer=tokenizer, model=MODEL | dict(vocab_size=100)))
    short, made = (dict(kind="synthetic", synthetic=dict(min_len=n)) for n in (2, 120))
    with pytest.raises(ConfigError, match="synthetic.min_len: got 2"):
        check_config(VALUES | dict(tokenizer=tokenizer, data=DATA | dict(sources=[short])))
    assert not check_config(VALUES | dict(tokenizer=tokenizer, data=DATA | dict(sources=[made]))).missing


def test_a_source_is_its_config(tmp_path, tokenizer):
    """A Hugging Face directory, a .gguf file, a run with and without its checkpoints: as `load` has them."""
    whole = tiny_hf_directory(tmp_path / "hf", original_len=64)
    changes = dict(positions=(dict(name="linear", factor=2.0),), remat="full")
    want = load(str(whole), changes).config
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(whole / "config.json", alone)
    assert read_model(str(alone), changes) == want
    lm = load(str(whole))
    hf.save_gguf(lm.params, lm.config, lm.tokenizer, tmp_path / "m.gguf", dtype="float32")
    assert read_model(str(tmp_path / "m.gguf"), changes) == load(str(tmp_path / "m.gguf"), changes).config
    run = tmp_path / "run"
    train(settings(tokenizer, steps=2, frequencies=dict(train="alone"), optim=dict(lr=1e-2)), run, quiet=True)
    learned = load(str(run)).config
    assert learned != load(f"{run}@2", dict(positions=())).config
    assert read_model(str(run)) == read_model(f"{run}@2") == learned
    shutil.rmtree(run / "checkpoints")
    assert read_model(str(run)).positions != learned.positions  # those that it began with
    assert check_config(VALUES | dict(source="giraffe-mini", model={})).model == load("giraffe-mini").config


def test_a_named_shape_stands_for_a_source_that_is_not_here(tmp_path, capsys):
    values = VALUES | dict(source="/not/here", model=dict(positions=[dict(name="linear", factor=8.0)]))
    assert main(["train", config_file(tmp_path, values), "--dry-run", "--model=giraffe_mini"]) == 0
    said = capsys.readouterr().out
    assert "positions: linear, trained to 256 before" in said
    assert "not checked: config.source: /not/here was not read; a shape stands for it." in said
    assert main(["train", config_file(tmp_path, values), "--dry-run", "--model=llama2_8b"]) == 2
    assert "Did you mean" in capsys.readouterr().err
