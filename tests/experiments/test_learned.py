"""experiments/learned: what it reads is unseen, trainings read short and long documents, and all.py goes in order."""

import importlib.util
import json
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build, to_dict
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.lab import spec
from giraffe_jax.lab.tables import SearchConfig
from giraffe_jax.loading import load

ROOT = Path(__file__).parents[2]
TABLE = [dict(name="longrope", short_factor=[2.0] * 16, long_factor=[2.0] * 16, factor=8.0, attention_factor=1.0)]


def script(path):
    spec = importlib.util.spec_from_file_location(f"learned_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path, monkeypatch):
    """config.py with a table of each search."""
    module = script(ROOT / "experiments/learned/config.py")
    for kind in module.KINDS:
        for factor in module.FACTORS:
            (tmp_path / f"searched_{kind}_{factor}.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def built(config):
    found = build(spec.ExperimentConfig, config.get_config())
    spec.check(found)
    return found


def test_nothing_that_is_evaluated_was_read_before(config):
    prepare = script(ROOT / "experiments/mini/prepare.py")
    trained = {name for name in prepare.python() if f"python-{name}" not in prepare.HELDOUT}
    stdlib = Path(sysconfig.get_path("stdlib"))
    read = {path.relative_to(stdlib).as_posix() for path in stdlib.glob("xml/*/*.py")}
    assert config.READ == str(stdlib / "xml/*/*.py") and len(read) > 10
    evaluated = set(config.HELDOUT)
    assert len(evaluated) == 16 and not evaluated & read
    for name in evaluated | read:
        assert "-".join(Path(name).with_suffix("").parts).strip("_") not in trained, name


def test_every_length_has_a_window_of_each_document(config):
    tokenizer = load("giraffe-mini").tokenizer
    tasks = {task["name"]: task for task in built(config).tasks}
    documents = tasks["perplexity"]["documents"]
    assert tasks["perplexity"]["n"] == len(documents) == 16 and tasks["lines"]["n"] == 100
    assert min(len(tokenizer.encode(Path(d).read_text(encoding="utf-8"))) for d in documents) >= 2048


def test_mixed_training_is_plain_up_to_the_trained_length_and_has_the_budget_of_the_others(config):
    found = built(config)
    runs = {v.name: spec.train_config(found, v, 0) for v in found.variants if v.train is not None}
    for factor in (4, 8):
        name = f"searched {factor}, longrope2"
        plain, mixed = runs[f"{name} + training"], runs[f"{name} + mixed training"]
        assert plain.data == mixed.data == runs[f"yarn {factor} + training"].data and plain.steps == mixed.steps
        assert plain.optim == mixed.optim
        positions = {v.name: v.positions for v in found.variants}
        assert to_dict(positions[name]) == TABLE
        assert to_dict(positions[f"{name} + mixed training"]) == [dict(name="mixed", choices=[[], TABLE])]


def test_trainings_read_short_and_long_documents(config):
    """About a quarter of rows are of documents within the trained length, which mixed windows read plainly."""
    found = built(config)
    (variant,) = [v for v in found.variants if v.name == "searched 8, longrope2 + mixed training"]
    pipeline = make_pipeline(spec.train_config(found, variant, 0).data, load("giraffe-mini").tokenizer)
    rows = [row for i in range(40) for row in pipeline.batch(i)["positions"]]
    longest = np.array([row.max() + 1 for row in rows])
    assert 0.1 < (longest <= 256).mean() < 0.4 and (longest > 1024).mean() > 0.2


def test_searches_are_longrope2s_where_they_say_so_and_a_wrong_one_is_named(config):
    for kind, factor in (("needles", 4), ("text", 8), ("longrope2", 8)):
        found = build(SearchConfig, config.get_config(f"{kind},{factor}"))
        assert found.recipe == ("longrope2" if kind == "longrope2" else "longrope") and found.factor == factor
        assert found.batches * found.data.batch_size * found.data.seq_len == 8192
    with pytest.raises(ValueError, match="searches are needles,4 needles,8 text,4"):
        config.get_config("longrope3,8")


def test_one_command_makes_all_searches_and_then_runs(tmp_path, monkeypatch):
    module, done = script(ROOT / "experiments/learned/all.py"), []

    def search(config, workdir):
        done.append((str(workdir.relative_to(tmp_path)), config["recipe"], config["factor"]))
        return SimpleNamespace(entry=TABLE[0])

    def run(config, workdir):
        tables = sorted(path.name for path in tmp_path.glob("searched_*.json"))
        done.append((config["name"], workdir, tables))
        return SimpleNamespace(failures=0)

    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "search", search)
    monkeypatch.setattr(module, "run", run)
    assert module.main([f"--workdir={tmp_path}"]) == 0
    *searches, (name, workdir, tables) = done
    names = [f"{kind}_{factor}" for kind in ("needles", "text", "longrope2") for factor in (4, 8)]
    assert [where for where, *_ in searches] == [f"searches/{name}" for name in names]
    assert [recipe for _, recipe, _ in searches] == ["longrope"] * 4 + ["longrope2"] * 2
    assert (name, workdir) == ("learned", tmp_path)
    assert tables == sorted(f"searched_{name}.json" for name in names)
    assert json.loads((tmp_path / tables[0]).read_text()) == TABLE


def test_paired_says_both_tasks_and_names_variants_that_are_there(tmp_path, capsys):
    def row(variant, task, example, seed=0, **metrics):
        about = dict(document=f"d{example}", window=0) if task == "perplexity" else dict(prompt=f"p{example}")
        return dict(variant=variant, task=task, length=1024, example=example, seed=seed, metrics=metrics, **about)

    found = []
    for i in range(16):
        found.append(row("base", "perplexity", i, nll=1.0 + i, tokens=1000))
        for seed, by in enumerate((0.4, 0.6)):  # a mean of a half: e ** 0.5
            found.append(row("mine", "perplexity", i, seed, nll=1.0 + i + by, tokens=1000))
        found += [row("base", "lines", i, teacher=1), row("mine", "lines", i, teacher=int(i < 4))]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in found))
    module = script(ROOT / "experiments/learned/paired.py")
    module.main("base", path)
    perplexity, lines = capsys.readouterr().out.splitlines()
    assert "mine" in perplexity and "1.649 (1.649-1.649), 16 documents" in perplexity
    assert "mine" in lines and "-75.0 (" in lines and "p 0.00049, 16 examples" in lines  # 2 / 2 ** 12
    with pytest.raises(SystemExit, match="no variant 'other'; there are 'base', 'mine'"):
        module.main("other", path)


def test_a_config_that_cannot_be_read_names_the_search(config):
    from giraffe_jax.config import load as read

    with pytest.raises(ConfigError, match="longrope2,16"):
        read(f"{ROOT}/experiments/learned/config.py:longrope2,16")
