"""An experiment resumes, keeps what failed apart, and refuses what is not its own. Model and evaluation are fakes."""

import json
import os
import shutil
import subprocess
import types

import pytest

from giraffe_jax import evals, provenance, records, report
from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import make_pipeline
from giraffe_jax.inference import LM
from giraffe_jax.lab import cells, manifest, spec
from giraffe_jax.lab import run as lab_run
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import ByteTokenizer

TASKS = [
    {"name": "passkey", "lengths": [128, 256], "n": 2, "depths": [0.0, 1.0], "style": "compact"},
    {"name": "lines", "lengths": [128], "n": 3, "style": "compact"},
]


def config(**changes):
    values = {
        "name": "test",
        "source": "somewhere",
        "original_len": 128,
        "variants": [{"name": "plain"}, {"name": "linear 4", "positions": [{"name": "linear", "factor": 4.0}]}],
        "tasks": TASKS,
    }
    return build(spec.ExperimentConfig, values | changes)


@pytest.fixture
def world(monkeypatch):
    """Fakes of loading, training, evaluating and drawing; `calls` says what was done, `broken` which cells raise."""
    calls, broken = [], set()

    names = ("vocab_size", "d_model", "d_mlp", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    model = build(ModelConfig, dict.fromkeys(names, 8) | {"original_len": 128})

    def load(source, overrides, base=None):
        calls.append(("load", source))
        return LM(model, {}, None)

    def train(settings, workdir):
        calls.append(("train", settings.seed, str(workdir.name)))
        return load(settings.source, {})

    def evaluate(lm, tasks, encoding_for, *, tokens_per_batch, variant, skip):
        for task in tasks:
            for length in task.lengths:
                if skip(evals.label(task), length):
                    continue
                calls.append((variant, evals.label(task), length, float(encoding_for(length).inv_freq[0])))
                for i in range(task.n):
                    if (variant, evals.label(task), length) in broken and i == 1:
                        raise RuntimeError("out of memory\nat great length")
                    metrics = {"teacher": (i + length + task.seed) % 2, "answer_nll": 0.5}
                    yield {
                        "variant": variant,
                        "task": evals.label(task),
                        "length": length,
                        "example": i,
                        "metrics": metrics,
                    }

    monkeypatch.setattr("giraffe_jax.loading.load", load)
    monkeypatch.setattr("giraffe_jax.training.loop.train", train)
    monkeypatch.setattr("giraffe_jax.evals.run.evaluate", evaluate)
    monkeypatch.setattr("giraffe_jax.identity.of_source", lambda source, **_: {"weights of it": "f" * 16})
    monkeypatch.setattr("giraffe_jax.report.plots.draw", lambda *_, **__: [])
    return types.SimpleNamespace(calls=calls, broken=broken)


CELL = ("plain", "passkey", 128)  # the first that is measured


def run(settings, where):
    said = []
    outcome = lab_run.run(settings, where, say=said.append)
    return outcome, said


def evaluated(world):
    return [call[:3] for call in world.calls if call[0] not in ("load", "train")]


def test_everything_is_measured_once(world, tmp_path):
    outcome, said = run(config(), tmp_path)
    cells = [(v, t, n) for v in ("plain", "linear 4") for t, n in (("passkey", 128), ("passkey", 256), ("lines", 128))]
    assert evaluated(world) == cells
    assert [call[3] for call in world.calls if call[0] == "linear 4"] == [0.25] * 3
    assert outcome.failures == 0 and outcome.page == tmp_path / "report.html" and outcome.page.is_file()
    for name in ("results.csv", "tables.md", "experiment.json"):
        assert (tmp_path / name).exists()
    assert len(outcome.results.rows) == 2 * (2 + 2 + 3)
    assert all(row["trained"] is False and row["key"] for row in outcome.results.rows)
    assert any(line.endswith("done") for line in said) and str(outcome.page) in said[-1]
    world.calls.clear()
    page = outcome.page.read_bytes()
    run(config(), tmp_path)
    assert world.calls == [], "a finished experiment loads and measures nothing"
    assert outcome.page.read_bytes() == page


def test_the_manifest_says_what_was_measured_and_how(world, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/giraffe", "run", "my config", "--config.seeds=1"])
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    run(config(), tmp_path)
    first = json.loads((tmp_path / "experiment.json").read_text())
    shape = dict.fromkeys(("num_layers", "num_heads", "num_kv_heads", "head_dim", "d_model", "vocab_size"), 8)
    assert first["model"] == shape | {
        "parameters": 0, "theta": 10000.0, "original_len": 128, "dtype": "float32", "precision": "highest",
    }  # fmt: skip
    assert first["command"] == "giraffe run 'my config' --config.seeds=1"
    assert first["versions"]["commit"] == "0123456789ab" and len(first["date"]) == len("2000-01-01")
    monkeypatch.setattr("sys.argv", ["giraffe", "run", "again"])
    monkeypatch.setattr("time.strftime", lambda _: "2999-12-31")
    run(config(), tmp_path)
    again = json.loads((tmp_path / "experiment.json").read_text())
    assert [again[key] for key in ("model", "date", "command")] == [first[k] for k in ("model", "date", "command")]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_or_none(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's, that point to its repository
        monkeypatch.delenv(name)

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    code = tmp_path / "provenance.py"
    code.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(code))
    git("init", "-q")
    assert provenance.commit() is None, "a repository around the code that does not hold it"
    git("add", "provenance.py")
    git("commit", "-q", "-m", "x")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert provenance.commit() == head[:12]
    code.write_text("2")
    assert provenance.commit() == head[:12] + "+"


def test_an_unfinished_cell_is_done_again_and_its_rows_count_once(world, tmp_path):
    run(config(), tmp_path)
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    last = [i for i, line in enumerate(lines) if json.loads(line).get("kind") == "done"][-1]
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[: last - 1]) + lines[last - 1][:10])
    world.calls.clear()
    outcome, _ = run(config(), tmp_path)
    assert evaluated(world) == [("linear 4", "lines", 128)]
    examples = [(row["variant"], row["task"], row["length"], row["example"]) for row in outcome.results.rows]
    assert len(examples) == len(set(examples)) == 14


def test_a_cell_that_lost_a_row_is_measured_again_and_counts_for_nothing_before(world, tmp_path):
    run(config(), tmp_path)
    file = tmp_path / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[0] = b'{"variant": "pla\n'
    file.write_bytes(b"".join(lines))
    world.calls.clear()
    with pytest.warns(UserWarning, match="line 1"):
        rows = report.read([tmp_path]).rows
    assert len(rows) == 12 and not any((r["variant"], r["task"], r["length"]) == CELL for r in rows)
    with pytest.warns(UserWarning, match="line 1"):
        outcome, _ = run(config(), tmp_path)
    assert evaluated(world) == [CELL] and len(outcome.results.rows) == 14
    assert (tmp_path / "results.jsonl.bad").read_bytes() == lines[0]


def test_failures_are_rows_and_are_tried_again(world, tmp_path):
    world.broken.add(("plain", "passkey", 256))
    outcome, said = run(config(), tmp_path)
    assert outcome.failures == 1
    (failure,) = outcome.results.failures
    assert failure["error"] == "RuntimeError: out of memory" and failure["length"] == 256
    assert "out of memory" in outcome.page.read_text() and any("out of memory" in line for line in said)
    assert not [r for r in outcome.results.rows if (r["variant"], r["task"], r["length"]) == ("plain", "passkey", 256)]
    world.broken.clear()
    world.calls.clear()
    outcome, _ = run(config(), tmp_path)
    assert evaluated(world) == [("plain", "passkey", 256)] and outcome.failures == 0
    assert "out of memory" not in outcome.page.read_text()


def test_more_variants_tasks_and_lengths_may_come(world, tmp_path):
    run(config(), tmp_path)
    world.calls.clear()
    longer = [dict(TASKS[0], lengths=[128, 256, 512]), TASKS[1]]
    outcome, _ = run(config(variants=[{"name": "plain"}, {"name": "new"}], tasks=longer), tmp_path)
    assert evaluated(world) == [("plain", "passkey", 512)] + [
        ("new", t, n) for t, n in (("passkey", 128), ("passkey", 256), ("passkey", 512), ("lines", 128))
    ]
    assert set(outcome.results.variants) == {"plain", "new", "linear 4"}
    with pytest.raises(ConfigError, match="another experiment"):
        run(config(variants=[{"name": "linear 4", "positions": [{"name": "linear", "factor": 2.0}]}]), tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "other"}, r"config\.name was 'test', now 'other'"),
        ({"source": "elsewhere"}, r"config\.source\.name was 'somewhere', now 'elsewhere'"),
        ({"model": {"dtype": "bfloat16"}}, r"config\.model\.dtype was None, now 'bfloat16'"),
        ({"original_len": 64}, r"config\.model\.original_len was 128, now 64"),
        ({"tasks": [dict(TASKS[0], n=3)]}, r"config\.tasks\.passkey\.n was 2, now 3"),
    ],
)
def test_another_experiments_workdir_is_refused(world, tmp_path, changes, message):
    run(config(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        run(config(**changes), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_rows_without_a_manifest_are_not_touched(world, tmp_path):
    records.write_atomically(tmp_path / "results.jsonl", '{"a":1}\n')
    with pytest.raises(ConfigError, match="not an experiment's"):
        run(config(), tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ConfigError, match="not an experiment's manifest"):
        run(config(), tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variants": []}, r"config\.variants: the list is empty"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, r"2 are called 'a'"),
        ({"variants": [{"name": "a", "positions": [{"name": "linaer"}]}]}, r"config\.variants\[0\]\.positions"),
        (
            {"variants": [{"name": "a", "eval_positions": [{"name": "linear"}]}]},
            r"variants\[0\]\.eval_positions.*factor",
        ),
        ({"variants": [{"name": "a", "train": {"source": "x"}}]}, r"variants\[0\]\.train: \['source'\]"),
        ({"variants": [{"name": "a", "train": {"stesp": 3}}]}, r"variants\[0\]\.train: unknown \['stesp'\]"),
        ({"tasks": [{"name": "pass"}]}, r"config\.tasks\[0\]"),
        ({"tasks": [TASKS[0], TASKS[0]]}, r"2 are called 'passkey'"),
        ({"model": {"positions": []}}, r"config\.model\.positions"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_written(world, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(config(**changes), tmp_path / "new")
    assert world.calls == [] and not (tmp_path / "new").exists()


def test_a_variant_that_the_model_cannot_be_read_with_is_refused_before_any_is_measured(world, tmp_path):
    late = {"name": "late", "positions": [{"name": "clip", "planes": 99}]}
    read_late = {"name": "late", "positions": [], "eval_positions": late["positions"]}
    for variant, key in (
        (late, "positions"), (late | {"eval_positions": []}, "positions"), (read_late, "eval_positions"),
    ):  # fmt: skip
        what = (
            rf"^config\.variants\[1\]\.{key}\[0\] \(clip\): planes must be at most .* = 4, got 99.*'late' at 128 tokens"
        )
        with pytest.raises(ConfigError, match=what):
            run(config(variants=[{"name": "plain"}, variant]), tmp_path / f"{key}{len(variant)}")
    assert not evaluated(world)


def test_trained_variants_and_seeds(world, tmp_path):
    train = {"steps": 3, "data": {"sources": [{"kind": "synthetic"}], "seq_len": 128, "batch_size": 1}}
    variants = [
        {"name": "plain"},
        {"name": "Plain, trained", "train": train, "eval_positions": [{"name": "linear", "factor": 2.0}]},
    ]
    outcome, _ = run(config(variants=variants, tasks=TASKS[1:], seeds=[0, 7]), tmp_path)
    trainings = [call for call in world.calls if call[0] == "train"]
    assert [seed for _, seed, _ in trainings] == [0, 7] and len({where for _, _, where in trainings}) == 2
    assert [call[3] for call in world.calls if call[0] == "Plain, trained"] == [0.5] * 2
    flags = {(row["variant"], row["seed"], row["trained"]) for row in outcome.results.rows}
    assert flags == {("plain", 0, False), ("plain", 7, False), ("Plain, trained", 0, True), ("Plain, trained", 7, True)}


def test_each_seed_trains_on_other_batches():
    """A source without adapters has nothing else to draw: its trainings would be copies of one."""
    text = {"kind": "synthetic", "synthetic": {"min_len": 120}}
    train = {"steps": 3, "data": {"sources": [text], "seq_len": 128, "batch_size": 1, "seed": 5}}
    experiment = build(spec.ExperimentConfig, config(variants=[{"name": "trained", "train": train}]))
    first, second = (spec.train_config(experiment, experiment.variants[0], seed) for seed in (0, 1))
    assert (first.data.seed, second.data.seed) == (5, 6)
    rows = [make_pipeline(c.data, ByteTokenizer()).batch(0)["tokens"] for c in (first, second)]
    assert (rows[0] != rows[1]).any()


def test_a_run_of_a_seed_that_read_the_rows_of_seed_0_is_trained_anew(world, tmp_path):
    train = {"steps": 3, "data": {"sources": [{"kind": "synthetic"}], "seq_len": 128, "batch_size": 1}}
    experiment = dict(variants=[{"name": "trained", "train": train}], tasks=TASKS[1:], seeds=[0, 1])
    run(config(**experiment), tmp_path)
    first, second = (tmp_path / "train" / f"trained-seed{seed}" / "contents.json" for seed in (0, 1))
    began = json.loads(second.read_text())
    assert began.pop("seed of training rows") == "1" and began == json.loads(first.read_text())
    second.write_text(json.dumps(began))  # as an earlier version began it
    (tmp_path / "results.jsonl").unlink()
    _, lines = run(config(**experiment), tmp_path)
    assert [p.name for p in second.parent.parent.glob("*before*")] == ["trained-seed1.before-1"]
    assert any("changed: seed of training rows (new); trained is trained anew" in line for line in lines)


def test_another_single_seed_is_another_training(world, tmp_path):
    train = {"steps": 3, "data": {"sources": [{"kind": "synthetic"}], "seq_len": 128, "batch_size": 1}}
    variants = [{"name": "trained", "train": train}]
    for seed in (0, 1):
        run(config(variants=variants, tasks=TASKS[1:], seeds=[seed]), tmp_path)
    assert [call[1:] for call in world.calls if call[0] == "train"] == [(0, "trained"), (1, "trained-seed1")]


def test_variants_that_are_trained_alike_are_one_run_read_at_several_scales(world, tmp_path):
    train = {"steps": 3, "data": {"sources": [{"kind": "synthetic"}], "seq_len": 128, "batch_size": 1}}
    four, eight = ([{"name": "linear", "factor": factor}] for factor in (4.0, 8.0))
    variants = [
        {"name": "4", "positions": four, "train": train},
        {"name": "4 read at 8", "positions": four, "train": train, "eval_positions": eight},
        {"name": "8", "positions": eight, "train": train},
        {"name": "longer", "positions": four, "train": train | {"steps": 4}},
    ]
    run(config(variants=variants), tmp_path)
    folders = [call[2] for call in world.calls if call[0] == "train"]
    assert folders == ["4", "4", "8", "longer"]
    assert {call[3] for call in world.calls if call[0] == "4 read at 8"} == {0.125}


def test_what_another_process_measures_is_left_to_it(world, tmp_path):
    lock = tmp_path / lab_run.LOCKS / records.slug("linear 4")
    with records.locked(lock), records.locked(tmp_path / lab_run.LOCKS / "rows", shared=True):
        outcome, said = run(config(), tmp_path)
    first = {call[0] for call in world.calls if call[0] not in ("load", "train")}
    assert first == {"plain"} and {row["variant"] for row in outcome.results.rows} == {"plain"}
    assert any("cells are being measured by other processes" in line for line in said)
    before = len(world.calls)
    outcome, _ = run(config(), tmp_path)
    again = {call[0] for call in world.calls[before:] if call[0] not in ("load", "train")}
    assert again == {"linear 4"} and {row["variant"] for row in outcome.results.rows} == {"plain", "linear 4"}


def test_what_another_process_has_measured_meanwhile_is_not_measured_again(world, tmp_path, monkeypatch):
    done, known = [], manifest.finished

    def later(path):  # between the list of cells and the taking of a variant, another process measures it
        found = known(path)
        done.append(found)
        return found if len(done) == 1 else found | {c.key: c.name for c in todo if c.variant.name == "plain"}

    built = config()
    todo = manifest.plan(built, spec.check(built), {}, tmp_path).cells
    monkeypatch.setattr(manifest, "finished", later)
    run(built, tmp_path)
    assert {call[0] for call in world.calls if call[0] not in ("load", "train")} == {"linear 4"}


def test_published_files_and_questions_depend_on_all_lengths(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    for keys in (dict(name="lines", files=["a.jsonl"]), dict(name="giraffe_qa", kind="free_form", questions=["a"])):
        short, long = (cells.about_task(evals.build(keys | dict(lengths=n))) for n in ([64], [64, 128]))
        assert short != long
    short, long = (cells.about_task(evals.build(dict(name="lines", lengths=n))) for n in ([64], [64, 128]))
    assert short == long


def test_a_training_that_fails_does_not_stop_the_rest(world, tmp_path, monkeypatch):
    def diverge(settings, workdir):
        raise FloatingPointError("step 3: loss is nan")

    monkeypatch.setattr("giraffe_jax.training.loop.train", diverge)
    train = {"steps": 3, "data": {"sources": [{"kind": "synthetic"}], "seq_len": 128, "batch_size": 1}}
    outcome, _ = run(config(variants=[{"name": "bad", "train": train}, {"name": "plain"}]), tmp_path)
    assert outcome.failures == 3 and outcome.results.variants == ["plain"]


def test_slugs_differ():
    names = ["yarn 4", "yarn-4", "Yarn 4", "yarn 4!", "+"]
    assert len({records.slug(name) for name in names}) == len(names)
    assert records.slug("yarn-4") == "yarn-4"
    assert all(set(records.slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


def test_a_refused_variant_does_not_claim_the_workdir(tmp_path):
    """The corrected config is not told that the workdir is another experiment's."""
    variants = [dict(name="dca", positions=[dict(name="dca", chunk_size=8, local_size=16)])]  # refused when bound
    config = dict(name="x", source="giraffe-mini", variants=variants, tasks=[dict(name="passkey", lengths=[128], n=1)])
    with pytest.raises(ConfigError, match=r"config.variants\[0\].positions\[0\] \(dca\): local_size"):
        lab_run.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
