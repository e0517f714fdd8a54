"""Running tasks: one compilation for all frequency methods, the same prompts for all, rows in order."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax import config, evals, inference
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import run
from giraffe_jax.inference import scoring
from tests.close import ULP, decided
from tests.forward import full_logits

FACTORS = (np.linspace(1.0, 4.0, 4)).tolist()
METHODS = {
    "plain": [],
    "linear": [dict(name="linear", factor=4.0)],
    "ntk": [dict(name="ntk", factor=4.0)],
    "dynamic": [dict(name="dynamic", factor=4.0)],
    "yarn": [dict(name="yarn", factor=4.0)],
    "llama3": [dict(name="llama3", factor=4.0)],
    "longrope": [dict(name="longrope", short_factor=[1.0] * 4, long_factor=FACTORS)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=64.0)],
}


def rows_of(lm, tasks, scaling, **keys):
    # Where the methods are the model's own, too: its config must not reach the compiled function with them.
    lm = dataclasses.replace(lm, config=dataclasses.replace(lm.config, positions=config.freeze(scaling)))
    return list(run.evaluate(lm, tasks, lm.config.bind, **keys))


def test_all_frequency_methods_share_one_compilation(tiny, tmp_path, traces):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 20)
    tasks = [
        dict(name="perplexity", lengths=[128], documents=[str(tmp_path)], n=2, protocol="aligned", stride=32),
        dict(name="passkey", lengths=[128], style="compact", n=2, depths=[0.5], scoring=["teacher"]),
        dict(name="lines", lengths=[128], style="compact", n=2),
    ]
    seen, losses = traces(scoring, "Llama"), {}
    for name, scaling in METHODS.items():
        rows = rows_of(tiny, tasks, scaling, tokens_per_batch=256, variant=name)
        losses[name] = tuple(r["metrics"].get("nll", r["metrics"].get("answer_nll")) for r in rows)
    assert len(seen) == 1
    assert len(set(losses.values())) == len(METHODS)  # and each was its own method all the same


def test_generation_compiles_once_for_all_frequency_methods(tiny, traces):
    task = dict(name="lines", lengths=[96], style="compact", n=2, scoring=["generate"], new_tokens=8)
    seen = traces(scoring, "Llama")
    counts = []
    for scaling in METHODS.values():
        rows_of(tiny, [task], scaling, tokens_per_batch=192)
        counts.append(len(seen))
    assert counts[0] > 0 and set(counts) == {counts[0]}


def test_every_method_is_asked_the_same(tiny):
    task = dict(name="lines", lengths=[96, 128], style="compact", n=2)
    asked = [
        [(r["length"], r["example"], r["prompt"], r["expected"]) for r in rows_of(tiny, [task], METHODS[name])]
        for name in ("plain", "yarn")
    ]
    assert asked[0] == asked[1] and len(set(asked[0])) == 4


def test_batch_size_does_not_change_scores(tiny, monkeypatch):
    said, generate = {}, inference.generate

    def listen(lm, prompts, *args, **keys):
        said.update(zip(map(tuple, prompts), found := generate(lm, prompts, *args, **keys), strict=True))
        return found

    monkeypatch.setattr("giraffe_jax.inference.generation.generate", listen)
    task = dict(name="lines", lengths=[96], style="compact", n=3, scoring=["generate", "teacher"], new_tokens=8)
    one, many = (rows_of(tiny, [task], METHODS["yarn"], tokens_per_batch=t) for t in (96, 192))
    encoding = tiny.config.bind(length=96.0, scaling=METHODS["yarn"])
    assert len(said) == 3
    for a, b, (prompt, answer) in zip(one, many, said.items(), strict=True):
        assert a["prompt"] == b["prompt"]
        assert a["metrics"]["answer_nll"] == pytest.approx(b["metrics"]["answer_nll"], rel=256 * ULP)
        scores = full_logits(tiny, [*prompt, *answer], encoding, width=128)[len(prompt) - 1 : -1]
        assert a["output"] == b["output"] or not decided(scores).all()


def test_cells_that_are_done_are_skipped(tiny):
    tasks = [dict(name="lines", lengths=[64, 96], style="compact", n=1)]
    rows = rows_of(tiny, tasks, [], skip=lambda task, length: (task, length) == ("lines", 64))
    assert [r["length"] for r in rows] == [96]


def test_two_tasks_of_one_kind_need_labels(tiny):
    task = dict(name="lines", lengths=[96], style="compact", n=1)
    with pytest.raises(ConfigError, match="2 are called 'lines'"):
        rows_of(tiny, [task, task], [])
    rows = rows_of(tiny, [task, task | dict(label="again")], [])
    assert [r["task"] for r in rows] == ["lines", "again"]


def test_tasks_are_the_files_of_the_folder():
    folder = Path(evals.__file__).parent
    files = {p.stem for p in (folder / "tasks").glob("[a-z]*.py")}
    assert {"lines", "passkey", "perplexity", "ruler"} < set(evals.names()) == files
    for path in folder.glob("[a-z]*.py"):
        assert not hasattr(importlib.import_module(f"giraffe_jax.evals.{path.stem}"), "Task")
    with pytest.raises(
        ConfigError, match=r"config.tasks\[2\]\.name: got None; the tasks are copying, giraffe_qa, key_values"
    ):
        evals.build(dict(lengths=[3]), "config.tasks[2]")
