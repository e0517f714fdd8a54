"""A result is of what it says: whatever decides a number is changed once, and its cells alone are measured again.

tests/older holds the workdir of a version that recorded no contents."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from giraffe_jax import evals, identity, records, report
from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import files
from giraffe_jax.evals import cases
from giraffe_jax.inference import LM
from giraffe_jax.lab import run as lab_run
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import code_digest
from giraffe_jax.training.config import TrainConfig
from tests import walk

OLDER = Path(__file__).parent / "older"
ALL = {v["name"] for v in walk.VARIANTS}
LENGTHS = {task["name"]: task["lengths"] for task in walk.TASKS}


@pytest.fixture
def world(monkeypatch, tmp_path):
    """The files of tests/walk.py in the current folder, and its fakes."""
    walk.lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a file edited within a second Python would take the old
    names = ("vocab_size", "d_model", "d_mlp", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    fakes = walk.fakes(LM(build(ModelConfig, dict.fromkeys(names, 8) | {"original_len": 128}), {}, None))
    monkeypatch.setattr("giraffe_jax.loading.load", fakes.load)
    monkeypatch.setattr("giraffe_jax.training.loop.train", fakes.train)
    monkeypatch.setattr("giraffe_jax.evals.run.evaluate", fakes.evaluate)
    monkeypatch.setattr("giraffe_jax.report.write", lambda directories, out: Path(out) / "report.html")
    monkeypatch.setattr("giraffe_jax.report.main_tables", lambda results: "")
    monkeypatch.setattr("giraffe_jax.report.too_few", lambda tasks, tokenizer: [])  # no tokenizer is loaded
    yield fakes
    walk.forget()


def run(world, where="run", *, keep=False, **changes):
    """Runs the experiment as a new process would. Returns (outcome, what it said, (variant, task, length) measured)."""
    walk.forget()
    world.measured.clear()
    world.trained.clear()
    said = []
    outcome = lab_run.run(walk.config(**changes), where, keep=keep, say=said.append)
    return outcome, said, set(world.measured)


def every(variants=ALL, tasks=tuple(LENGTHS)):
    return {(v, t, n) for v in variants for t in tasks for n in LENGTHS[t]}


def edit(name, old, new):
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def slowest(outcome, variant):
    return {row["slowest"] for row in outcome.results.rows if row["variant"] == variant}


RAMPS = {"ramp", "trained"}
EDITS = {  # what is edited -> what a run says of it, the cells that are measured again, the trainings
    "own method": (
        ("walk_ramp.py", "** slope(e)", "** (2 * slope(e))"),
        "code walk_ramp.py",
        every(RAMPS),
        ["trained"],
    ),
    "import": (("walk_slopes.py", "planes[-1]", "planes[-2]"), "code walk_slopes.py", every(RAMPS), ["trained"]),
    "read with": (("walk_other.py", "/ 3", "/ 5"), "code walk_other.py", every({"other", "trained plain"}), []),
    "document": (("books/a.txt", "One", "A"), "document books/a.txt", every(tasks=["perplexity"]), []),
    "case file": (("cases.jsonl", "x", "y"), "case file cases.jsonl", every(tasks=["lines"]), []),
    "tokenizer": (("weights/tokenizer.json", "{}", "{ }"), "tokenizer tokenizer.json", every(), None),
    "weights": (("weights/model.safetensors", "w" * 64, "w" * 63 + "v"), "weights model.safetensors", every(), None),
    "training data": (
        ("corpus/train.txt", "Text", "Words"),
        "training data corpus",
        every({"trained", "trained plain"}),
        ["trained", "trained plain"],
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_exactly_the_cells_of_what_was_edited_are_measured_again(world, what):
    change, named, cells, trained = EDITS[what]
    _, said, measured = run(world)
    assert measured == every() and not any("changed" in line for line in said)
    before = Path("run/results.jsonl").read_bytes()
    edit(*change)
    outcome, said, measured = run(world)
    assert measured == cells
    (line,) = [line for line in said if line.startswith("changed: ")]
    assert line.startswith(f"changed: {named}; {len(cells)} of {len(every())} cells (") and "measured again" in line
    begun = {records.slug(name) for name in (["trained", "trained plain"] if trained is None else trained)}
    assert {name for name in os.listdir("run/train") if "before-1" in name} == {f"{name}.before-1" for name in begun}
    whole = Path("run/results.jsonl").read_bytes()
    assert whole.startswith(before), "rows of other cells are as they were"
    fresh, _, _ = run(world, "fresh")
    assert sorted(map(bare, outcome.results.rows)) == sorted(map(bare, fresh.results.rows))
    assert sorted(map(bare, report.read(["run"]).rows)) == sorted(map(bare, fresh.results.rows))
    _, said, measured = run(world)
    assert not measured and not any("changed" in line for line in said)


def bare(row):
    return json.dumps({name: value for name, value in row.items() if name != "key"}, sort_keys=True)


@pytest.mark.parametrize(
    "change",
    [
        ("walk_ramp.py", "def ramp", "# slower and slower\ndef ramp"),
        ("walk_ramp.py", "Planes slower by a power of the factor.", "Slower planes."),
        ("walk_ramp.py", "e.replace(inv_freq", "e.replace(  # here\n        inv_freq"),
        ("walk_slopes.py", "\n", "\r\n"),
    ],
)
def test_what_cannot_matter_measures_nothing_again(world, change):
    run(world)
    edit(*change)
    _, said, measured = run(world)
    assert not measured and not world.trained and not any("changed" in line for line in said)


def test_a_change_in_the_middle_of_large_weights_is_seen(world):
    size = 40 << 20
    with open("weights/model.safetensors", "wb") as file:
        file.truncate(size)
    run(world)
    with open("weights/model.safetensors", "r+b") as file:
        file.seek(size // 2)
        file.write(b"x")
    assert run(world)[2] == every()


def test_a_higher_version_of_a_tasks_code_measures_that_task_again(world, monkeypatch):
    run(world)
    task = evals.module("passkey").Task
    monkeypatch.setattr(task, "VERSION", task.VERSION + 1)
    _, said, measured = run(world)
    assert measured == every(tasks=["passkey"]) and any("version of the code of passkey" in line for line in said)


def test_the_walk_edit_run_add_a_variant_compare(world):
    """A ramp is edited and the run repeated; then a variant is added. Before, the old numbers stood there, unnamed."""
    first, _, _ = run(world)
    edit("walk_ramp.py", "** slope(e)", "** (2 * slope(e))")
    outcome, said, _ = run(world)
    assert slowest(first, "ramp") != slowest(outcome, "ramp") and slowest(first, "other") == slowest(outcome, "other")
    assert any("code walk_ramp.py" in line for line in said)
    added = [*walk.VARIANTS, {"name": "new", "positions": walk.RAMP}]
    outcome, _, measured = run(world, variants=added)
    assert measured == every({"new"}) and slowest(outcome, "new") == slowest(outcome, "ramp")
    assert len(slowest(outcome, "ramp")) == 1


def test_what_is_put_back_has_its_rows_again(world):
    first, _, _ = run(world)
    edit("walk_ramp.py", "** slope(e)", "** (2 * slope(e))")
    run(world)
    edit("walk_ramp.py", "** (2 * slope(e))", "** slope(e)")
    outcome, said, measured = run(world)
    assert not measured and slowest(outcome, "ramp") == slowest(first, "ramp")
    assert any("code walk_ramp.py" in line and "have been measured with it before" in line for line in said)


def test_kept_rows_count_and_are_marked(world):
    first, _, _ = run(world)
    edit("walk_ramp.py", "** slope(e)", "** (2 * slope(e))")
    longer = [dict(task, lengths=[*task["lengths"], 256]) if task["name"] == "passkey" else task for task in walk.TASKS]
    outcome, said, measured = run(world, keep=True, tasks=longer)
    assert measured == {(v, "passkey", 256) for v in ALL}
    assert slowest(first, "ramp") < slowest(outcome, "ramp") and len(slowest(outcome, "ramp")) == 2
    kept = json.loads(Path("run/experiment.json").read_text())["kept"]
    assert {(k["variant"], k["task"], k["length"]) for k in kept} == every(RAMPS)
    assert all(k["changed"] == ["code walk_ramp.py"] for k in kept)
    _, again, measured = run(world, keep=True, tasks=longer)
    assert not measured and any("code walk_ramp.py" in line and "keep their older rows" in line for line in again)
    outcome, said, measured = run(world, tasks=longer)
    assert measured == every(RAMPS) and any("code walk_ramp.py" in line and "again" in line for line in said)
    manifest = json.loads(Path("run/experiment.json").read_text())
    assert manifest["kept"] == [] and len(slowest(outcome, "ramp")) == 1


def test_the_workdir_has_the_texts_of_own_methods_by_digest(world):
    run(world)
    edit("walk_slopes.py", "planes[-1]", "planes[-2]")
    run(world)
    sources = json.loads(Path("run/experiment.json").read_text())["sources"]
    assert {name: set(files) for name, files in sources.items()} == {
        "ramp": {"walk_ramp.py", "walk_slopes.py"},
        "trained": {"walk_ramp.py", "walk_slopes.py"},
        "other": {"walk_other.py"},
        "trained plain": {"walk_other.py"},
    }
    texts = {file.stem: file.read_text() for file in Path("run/methods").iterdir()}
    for own in sources.values():
        assert all(texts[digest] == Path(name).read_text() for name, digest in own.items())
    assert walk.FILES["walk_slopes.py"] in texts.values(), "what it was is kept"


def test_kept_variants_have_the_sources_of_their_rows(world):
    run(world)
    then = json.loads(Path("run/experiment.json").read_text())["sources"]
    edit("walk_ramp.py", "** slope(e)", "** (2 * slope(e))")
    run(world, keep=True)
    assert json.loads(Path("run/experiment.json").read_text())["sources"] == then


def test_a_dry_run_says_the_same_and_writes_nothing(world, monkeypatch):
    from giraffe_jax.lab import estimate

    run(world)
    edit("walk_other.py", "/ 3", "/ 5")
    there = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    for part in ("_measurements", "_trainings"):
        monkeypatch.setattr(estimate, part, lambda *_: [])
    for keep, finished in ((False, 12), (True, 20)):
        walk.forget()
        said = []
        found = estimate.estimate(walk.config(), "run", said.append, keep=keep)
        assert (found.cells, found.finished) == (20, finished) and "code walk_other.py" in said[0]
    assert there == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "key, value", [("cells", []), ("kept", {}), ("sources", 1), ("contents", {}), ("unrecorded", [])]
)
def test_a_manifest_of_something_else_is_refused_by_name(world, key, value):
    run(world)
    file = Path("run/experiment.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=rf"experiment\.json is not an experiment's manifest \({key}"):
        run(world)
    assert len(report.read(["run"]).rows) == 2 * len(every())


def test_training_data_that_is_gone_is_what_it_was(world):
    run(world)
    shutil.rmtree("corpus")
    _, _, measured = run(world, variants=[*walk.VARIANTS, {"name": "again"}])
    assert measured == every({"again"})


def test_an_older_workdir_is_read_and_what_is_unknown_of_it_is_said(world):
    shutil.copytree(OLDER, "run")
    rows = Path("run/results.jsonl").read_bytes()
    outcome, said, measured = run(world)
    assert not measured and Path("run/results.jsonl").read_bytes() == rows
    (line,) = [line for line in said if "older version" in line]
    assert line.startswith(f"{len(every())} of {len(every())} cells") and "did not record the code" in line
    assert len(outcome.results.rows) == 2 * len(every())
    edit("books/a.txt", "One", "A")
    outcome, said, measured = run(world)
    assert measured == every(tasks=["perplexity"]) and any("document books/a.txt" in line for line in said)
    assert any("older version" in line for line in said) and len(outcome.results.rows) == 2 * len(every())


def test_of_an_older_workdir_what_is_added_is_measured_and_known_changes_are_seen(world):
    shutil.copytree(OLDER, "run")
    some = [v for v in walk.VARIANTS if v["name"] != "ramp"]
    assert not run(world, variants=some)[2]
    assert run(world, variants=[*walk.VARIANTS, {"name": "new"}])[2] == every({"new"})
    shutil.rmtree("run")
    shutil.copytree(OLDER, "run")
    Path("run/train/trained/methods").mkdir(parents=True)
    Path("run/train/trained/methods/walk_ramp.py").write_text("another = 1\n")
    assert run(world)[2] == every({"trained"})


def test_an_older_workdir_of_other_weights_is_measured_again(world):
    shutil.copytree(OLDER, "run")
    Path("weights/model.safetensors").write_text("others")
    _, said, measured = run(world)
    assert measured == every() and any("files of weights" in line for line in said)


def test_rows_that_an_older_process_adds_meanwhile_do_not_count(world):
    """A process that began before an edit goes on with what it had; its rows are of keys that nobody asks for."""
    run(world)
    before = Path("run/results.jsonl").read_bytes()
    edit("walk_ramp.py", "** slope(e)", "** (2 * slope(e))")
    outcome, _, _ = run(world)
    with open("run/results.jsonl", "ab") as file:
        file.write(before)
    assert {bare(row) for row in report.read(["run"]).rows} == {bare(row) for row in outcome.results.rows}


REAL = """
from giraffe_jax.positions import Encoding


def slower(e: Encoding) -> Encoding:
    return e.replace(inv_freq=e.inv_freq / 1.5)
"""


def test_numbers_of_a_model_follow_an_edit(tmp_path, monkeypatch):
    """The same with nothing faked: what a workdir says after an edit is what a new one says."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("giraffe_jax.report.plots.draw", lambda *_, **__: [])
    task = dict(name="lines", lengths=[48], n=3, style="compact")
    variants = [dict(name="plain"), dict(name="slower", positions=[dict(name="walk_real.slower")])]
    settings = dict(name="real", source="giraffe-mini", variants=variants, tasks=[task])

    def losses(where):
        sys.modules.pop("walk_real", None)
        rows = lab_run.run(settings, tmp_path / where, say=lambda line: None).results.rows
        return {(row["variant"], row["example"]): row["metrics"]["answer_nll"] for row in rows}

    (tmp_path / "walk_real.py").write_text(REAL)
    before = losses("run")
    (tmp_path / "walk_real.py").write_text(REAL.replace("1.5", "2.5"))
    after, fresh = losses("run"), losses("fresh")
    assert after == fresh and len(after) == 6
    assert {key for key in after if after[key] != before[key]} == {("slower", i) for i in range(3)}


def test_large_files_are_read_once_while_they_stay_as_they_are(world, tmp_path, monkeypatch):
    reads, digest, file = [], hashlib.file_digest, Path("weights/model.safetensors")
    monkeypatch.setenv("GIRAFFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "RACY_NS", -(10**15))  # nothing is too fresh to be remembered
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(1) or digest(*args))
    for large, times in ((1000, 2), (10, 1)):
        monkeypatch.setattr(identity, "LARGE", large)
        known = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        assert identity.of_file(file) == identity.of_file(file) == known and len(reads) == times
        reads.clear()
    file.write_text("v" * 64)
    assert identity.of_file(file) != known and len(reads) == 1


def test_a_task_depends_on_the_model_that_picks_its_tokens(world):
    keys = dict(lengths=[128], documents=["books"], evaluator="weights", window=32)
    task = evals.build(dict(name="longppl") | keys)
    before = cases.contents(task)
    edit("weights/model.safetensors", "w" * 64, "v" * 64)
    assert identity.changes(before, cases.contents(task)) == ["evaluator's weights model.safetensors"]


def test_a_training_depends_on_stages_and_on_a_tokenizer_of_its_own(world):
    stages = [{"sources": walk.TRAIN["data"]["sources"], "until": 1}, {"sources": [{"kind": "synthetic"}]}]
    data = {"stages": stages, "seq_len": 128, "batch_size": 1}
    settings = build(TrainConfig, dict(steps=2, source="weights", tokenizer="weights/tokenizer.json", data=data))
    before = identity.of_training(settings, {})
    edit("weights/tokenizer.json", "{}", "{ }")
    edit("corpus/train.txt", "Text", "Words")
    after = identity.of_training(settings, {})
    assert identity.changes(before, after) == ["training data corpus", "training's tokenizer tokenizer.json"]


TEXT = '''
import math as m
from . import a, b as c
class K:
    """Doc."""
    x: int = 1
async def g(*args, k=None, **keys): return [i async for i in args if i] or {**keys, "a": (1, 2.5, 3j, b"x", ...)}
def f(x, /, y=2, *, z):
    "Doc."
    return lambda: f"{x!r:>{z}} {{}}" "and" f"{y}" if x[1:2, ::3] else -x @ y
'''


def test_digests_of_code_are_the_same_on_every_machine_and_python():
    """The digits are those of Python 3.11; syntax trees, and what ast.dump shows of them, differ between Pythons."""
    assert code_digest(TEXT) == code_digest(TEXT.replace("\n", "\r\n")) == "e3cbecea47cce839"
    assert code_digest(TEXT) != code_digest(TEXT.replace("2.5", "2.25"))


def test_docstrings_count_where_code_reads_them():
    reads = TEXT + "print(f.__doc__)\n"
    assert code_digest(reads) != code_digest(reads.replace("Doc.", "Docs."))
    assert code_digest(TEXT) == code_digest(TEXT.replace("Doc.", "Docs."))
