"""Running tasks: one compilation for all frequency methods, the same prompts for all, rows in order."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from giraffe_jax import config, decode, evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import run

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


def compiled(function: Any) -> Any:
    """The jitted function, with the cache that its type does not tell of."""
    return function


def test_all_frequency_methods_share_one_compilation(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 20)
    tasks = [
        dict(name="perplexity", lengths=[128], documents=[str(tmp_path)], n=2, protocol="chunked"),
        dict(name="passkey", lengths=[128], style="compact", n=2, depths=[0.5], scoring=["teacher"]),
        dict(name="lines", lengths=[128], style="compact", n=2),
    ]
    compiled(decode._score).clear_cache()
    losses = {}
    for name, scaling in METHODS.items():
        rows = rows_of(tiny, tasks, scaling, tokens_per_batch=256, variant=name)
        losses[name] = tuple(r["metrics"].get("nll", r["metrics"].get("answer_nll")) for r in rows)
    assert compiled(decode._score)._cache_size() == 1
    assert len(set(losses.values())) == len(METHODS)  # and each was its own method all the same


def test_generation_compiles_once_for_all_frequency_methods(tiny):
    task = dict(name="lines", lengths=[96], style="compact", n=2, scoring=["generate"], new_tokens=8)
    functions = [compiled(decode._prefill), compiled(decode._loop)]
    for function in functions:
        function.clear_cache()
    for scaling in METHODS.values():
        rows_of(tiny, [task], scaling, tokens_per_batch=192)
    assert [function._cache_size() for function in functions] == [1, 1]


def test_every_method_is_asked_the_same(tiny):
    task = dict(name="lines", lengths=[96, 128], style="compact", n=2)
    asked = [
        [(r["length"], r["example"], r["prompt"], r["expected"]) for r in rows_of(tiny, [task], METHODS[name])]
        for name in ("plain", "yarn")
    ]
    assert asked[0] == asked[1] and len(set(asked[0])) == 4


def test_batch_size_does_not_change_scores(tiny):
    task = dict(name="lines", lengths=[96], style="compact", n=3, scoring=["generate", "teacher"], new_tokens=8)
    one, many = (rows_of(tiny, [task], METHODS["yarn"], tokens_per_batch=t) for t in (96, 192))
    for a, b in zip(one, many, strict=True):
        assert a["output"] == b["output"] and a["prompt"] == b["prompt"]
        assert a["metrics"]["answer_nll"] == pytest.approx(b["metrics"]["answer_nll"], abs=1e-4)


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
    assert evals.names() == ["lines", "passkey", "perplexity"]
    with pytest.raises(ConfigError, match=r"config.tasks\[2\]\.name: got None; the tasks are lines, passkey"):
        evals.build(dict(lengths=[3]), "config.tasks[2]")
