"""Checkpoints that hold the trained part alone: what is in them, and what stands for the rest of the weights."""

import shutil

import jax
import numpy as np
import pytest

from giraffe_jax import checkpoint, hf
from giraffe_jax.config import ConfigError, build
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import load_tokenizer
from giraffe_jax.training.loop import losses, train
from tests.close import close
from tests.training.test_train import MODEL, settings


def saved(run):
    """Paths and sizes of the parameters in a run's last checkpoint."""
    with checkpoint.manager(run) as checkpoints:
        tree = checkpoint.saved_tree(checkpoints, checkpoint.find_step(checkpoints))["params"]
    return {path: int(np.prod(x.shape)) for path, x in paths(tree).items()}


def same(one, other):
    assert paths(one).keys() == paths(other).keys()
    for name, leaf in paths(one).items():
        close(leaf, paths(other)[name], ulps=64, what=name)  # adapters are merged by different programs


@pytest.fixture
def source(tmp_path, tokenizer, monkeypatch):
    """A Hugging Face directory, named by a path from the project's folder."""
    monkeypatch.chdir(tmp_path)
    model = build(ModelConfig, MODEL)
    hf.save(init_params(model, jax.random.key(5)), model, load_tokenizer(tokenizer), tmp_path / "base", dtype="float32")
    return "base"


def of(tokenizer, source, **changes):
    changes = dict(source=source, model={}, tokenizer="", steps=4, save_every=2, lora=dict(rank=2, train=())) | changes
    return settings(tokenizer, **dict(optim=dict(lr=1e-2, warmup_steps=0)) | changes)


@pytest.mark.parametrize(
    "part",
    [dict(), dict(lora=dict(rank=2, train=("norm", "embed"))), dict(lora=None, frequencies=dict(train="alone"))],
    ids=["adapters", "adapters, norms and embedding", "frequencies"],
)
def test_a_checkpoint_holds_what_is_trained_and_goes_on_from_it(part, source, tmp_path, tokenizer):
    config = of(tokenizer, source, **part)
    whole = train(config, tmp_path / "whole", quiet=True)
    train(config, tmp_path / "run", quiet=True)
    held = saved(tmp_path / "run")
    assert not [path for path in held if path.endswith("kernel")]
    assert ("embed/embedding" in held) == bool(part.get("lora"))
    with checkpoint.manager(tmp_path / "run", keep=2) as checkpoints:
        checkpoints.delete(4)
    again = train(config, tmp_path / "run", quiet=True)
    assert list(losses(tmp_path / "run")) == list(losses(tmp_path / "whole"))
    same(again.params, whole.params)
    same(load(str(tmp_path / "whole")).params, whole.params)


def test_runs_that_move_all_weights_or_have_no_source_hold_all(source, tmp_path, tokenizer):
    for name, changes in dict(all=dict(lora=None), fresh=dict(source="", model=MODEL, tokenizer=tokenizer)).items():
        train(of(tokenizer, source) | changes, tmp_path / name, quiet=True)
        assert "layers/attention/q/kernel" in saved(tmp_path / name)
        with pytest.raises(ConfigError, match=r"all of its weights; it needs no base"):
            load(str(tmp_path / name), base=source)


def test_a_base_is_found_where_its_project_has_moved_and_refused_where_it_is_another(
    source, tmp_path, tokenizer, monkeypatch
):
    trained = train(of(tokenizer, source), tmp_path / "run", quiet=True)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("base", "run"):
        shutil.move(tmp_path / name, moved / name)
    monkeypatch.chdir(moved)
    same(load("run").params, trained.params)
    (moved / "base").rename(moved / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"run: its checkpoints hold only what the run trained; it needs the weights of .*base"
    ):
        load("run")
    same(load("run", base="elsewhere").params, trained.params)
    model = build(ModelConfig, MODEL)
    words = load_tokenizer(tokenizer)
    hf.save(init_params(model, jax.random.key(6)), model, words, moved / "base", dtype="float32")
    for call in (lambda: load("run"), lambda: train(of(tokenizer, source), "run", quiet=True)):
        with pytest.raises(ConfigError, match=r"base has other weights now \(weights model\.safetensors\)"):
            call()


def test_a_run_on_a_run_keeps_to_the_checkpoint_it_began_with(source, tmp_path, tokenizer):
    first = dict(lora=None, optim=dict(lr=1e-3, warmup_steps=0, schedule="constant"))
    config = of(tokenizer, source, **first)
    train(config, "first", quiet=True)
    second = of(tokenizer, "first", steps=2)
    trained = train(second, "second", quiet=True)
    longer = of(tokenizer, source, **first, steps=6, keep=9)
    train(longer, "first", quiet=True)
    same(load("second").params, trained.params)
    again = train(of(tokenizer, "first", steps=2), "second", quiet=True)
    same(again.params, trained.params)
    shutil.rmtree("first/checkpoints/4")
    with pytest.raises(ConfigError, match=r"it needs the weights of .*first@4, which are not found"):
        load("second")
