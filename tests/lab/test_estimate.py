"""What an estimate counts is what a run does; what is finished costs nothing, and nothing is written."""

import math

import jax
import numpy as np
import pytest

from giraffe_jax import evals, inference, records
from giraffe_jax.config import ConfigError, build
from giraffe_jax.lab import cells, clock, estimate, spec
from giraffe_jax.lab import run as lab_run
from giraffe_jax.loading import load

LINES = dict(name="lines", lengths=[48, 64], n=5, style="compact")
TRAIN = dict(
    steps=40,
    data=dict(seq_len=32, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(kinds=("lines",)))]),
    optim=dict(lr=1e-3, schedule="linear", warmup_steps=10),
)
NTK, WINDOW = [dict(name="ntk", factor=4.0)], [dict(name="sliding_window", window=16.0)]


def config(*variants, tasks=(LINES,), **changes):
    values = dict(name="test", source="giraffe-mini", variants=variants, tasks=tasks, tokens_per_batch=128)
    return build(spec.ExperimentConfig, values | changes)


PLAIN, SLOWER = dict(name="plain"), dict(name="ntk 4", positions=NTK)


@pytest.mark.parametrize(
    "task",
    [
        LINES,
        LINES | dict(scoring=["teacher", "generate"], new_tokens=3),
        dict(name="passkey", lengths=[64], n=2, style="compact"),
        dict(name="perplexity", lengths=[32, 64], documents=["text"], protocol="aligned", stride=16, n=5),
        dict(name="perplexity", lengths=[64], documents=["text"], protocol="strided", n=2),
    ],
)
def test_counted_calls_are_those_a_run_makes(task, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("all work and no play makes a dull day\n" * 40)
    task = evals.build({**task, "documents": [str(tmp_path / "a.txt")]} if "documents" in task else task)
    lm, made = load("giraffe-mini"), []
    score, generate = inference.score, inference.generate

    def heard_score(lm, tokens, *args, scored):
        made.append(clock.Call(*tokens.shape, scored=0 if scored is None else scored.shape[1]))
        return score(lm, tokens, *args, scored=scored)

    def heard_generate(lm, prompts, n, encoding, *, length, batch, width):
        made.append(clock.Call(batch, width, n))
        return generate(lm, prompts, n, encoding, length=length, batch=batch, width=width)

    for length in task.lengths:
        counted = clock.Counted(lm.config, lm.params, lm.tokenizer)
        cell = lm.config.bind(length), dict(tokens_per_batch=128)
        assumed = list(evals.module(task.name).rows(task, counted, length, cell[0], **cell[1]))
        with monkeypatch.context() as patch:
            patch.setattr("giraffe_jax.inference.scoring.score", heard_score)
            patch.setattr("giraffe_jax.inference.generation.generate", heard_generate)
            rows = list(evals.module(task.name).rows(task, lm, length, cell[0], **cell[1]))
        assert counted.calls == made and made and len(rows) == len(assumed)
        made.clear()


def test_an_experiment_that_is_not_begun_part_by_part(tmp_path):
    said = []
    variants = [PLAIN, SLOWER, dict(name="window", positions=WINDOW)]
    variants += [
        dict(name=f"{v['name']}, trained", train=TRAIN, positions=v.get("positions", [])) for v in variants[:2]
    ]
    found = estimate.estimate(config(*variants, seeds=(0, 1)), tmp_path / "new", said.append)
    assert (found.cells, found.finished) == (20, 0)  # 5 variants, 2 lengths, 2 seeds
    training, lines, compilation = found.parts
    assert training.count == "4 runs, 160 steps of 256 tokens"
    assert lines.count == "20 cells of 48 to 64 tokens"
    assert compilation.count == "4 programs"  # two lengths, with a window and without; ntk is plain RoPE's
    assert all(part.seconds > 0 for part in found.parts) and found.seconds == sum(p.seconds for p in found.parts)
    first, *_, last = str(found).splitlines()
    assert first == "20 of 20 cells are left to measure"
    assert last == f"One process on this machine takes about {records.duration(found.seconds)}."
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_training_adds_to_a_model_is_there_when_its_cells_are_timed(tmp_path):
    learned = [[dict(name="nope"), dict(name="t5")], [dict(name="ssmax")], [dict(name="nope"), dict(name="kerple")]]
    variants = [dict(name=str(i), positions=positions, train=TRAIN) for i, positions in enumerate(learned)]
    found = estimate.estimate(config(PLAIN, *variants), tmp_path)
    assert found.cells == 8 and not any(math.isnan(part.seconds) for part in found.parts)


def test_what_is_finished_costs_nothing_and_tells_the_time_of_the_rest(tmp_path):
    quiet = dict(say=lambda line: None)
    lab_run.run(config(PLAIN), tmp_path, **quiet)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    nothing = estimate.estimate(config(PLAIN), tmp_path, **quiet)
    assert nothing == (2, 2, [], {}, 1) and str(nothing) == "all 2 cells are measured, nothing is left to do"
    more = estimate.estimate(config(PLAIN, SLOWER), tmp_path, **quiet)
    assert (more.cells, more.finished, len(more.parts)) == (4, 2, 1)
    took = [row["seconds"] for row in records.read_rows(tmp_path / "results.jsonl") if row.get("kind") == "done"]
    assert (
        more.seconds == pytest.approx(sum(took))
        and more.parts[0].how == "2 of them as long as finished cells like them took"
    )
    other = estimate.estimate(config(PLAIN, dict(name="window", positions=WINDOW)), tmp_path, **quiet)
    assert [part.name for part in other.parts] == ["lines", "compilation"] and not other.parts[0].how
    without = estimate.estimate(config(dict(name="window", positions=WINDOW)), tmp_path, **quiet)
    assert (without.cells, without.finished) == (2, 0)  # what the config no longer has tells nothing, and is no error
    with pytest.raises(ConfigError, match="another experiment"):
        estimate.estimate(config(PLAIN, name="other"), tmp_path, **quiet)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_a_training_that_has_begun_counts_from_its_last_step_at_its_own_pace(tmp_path):
    trained = dict(name="trained", train=TRAIN | dict(steps=4, save_every=2))
    longer = config(dict(name="trained", train=TRAIN | dict(save_every=2)))
    from giraffe_jax.training.loop import train

    where = cells.training_of(longer, longer.variants[0], 0, tmp_path)
    train(spec.train_config(config(trained), config(trained).variants[0], 0), where, quiet=True)
    (training, *_) = estimate.estimate(longer, tmp_path, lambda line: None).parts
    assert training.count == "1 run, 36 steps of 256 tokens" and "begun" in training.how


def test_encodings_of_other_shapes_are_other_programs():
    bind = load("giraffe-mini").config.bind
    assert clock.structure(bind(64)) == clock.structure(bind(64, scaling=NTK))
    leaves, tree = jax.tree.flatten(bind(64))
    wider = jax.tree.unflatten(tree, [np.repeat(leaf, 2, axis=0) if np.ndim(leaf) else leaf for leaf in leaves])
    assert clock.structure(wider) != clock.structure(bind(64))


def test_long_calls_of_other_structures_are_told_from_shorter_ones(monkeypatch):
    lm = load("giraffe-mini")
    timer = clock._Clock(lm)
    plain, window = timer.plain, lm.config.bind(64, scaling=WINDOW)
    short, long = clock.Call(1, 32), clock.Call(1, 64)
    seconds = {(False, short): 1.0, (True, short): 3.0, (False, long): 10.0}
    asked = []

    def run(call, encoding):
        asked.append((clock.structure(encoding) != clock.structure(plain), call))
        now[0] += seconds[asked[-1]]

    now = [0.0]
    monkeypatch.setattr(timer, "_run", run)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now[0])
    assert timer.seconds({short: 2}, window) == 6.0
    assert timer.seconds({long: 1}, window) == 30.0  # plain RoPE's 10 s, times what the shorter ones differ by
    assert (True, long) not in asked


def test_a_task_that_the_stand_in_cannot_answer_is_said_to_be_unknown(tmp_path, monkeypatch):
    def rows(*args, **kwargs):
        raise RuntimeError("no key tokens")
        yield

    monkeypatch.setattr(evals.module("lines"), "rows", rows)
    found = estimate.estimate(config(PLAIN), tmp_path, lambda line: None)
    assert math.isnan(found.parts[0].seconds) and "no key tokens" in str(found)
    last = "Parts marked ? cannot be estimated. One process on this machine takes about 0s for the rest."
    assert "  ?  " in str(found) and str(found).endswith(last)
    assert found.seconds == 0
