"""The five bases of giraffe-mini are trained by one command, some at a time, and a failure is no end of the others."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

from giraffe_jax.config import build
from giraffe_jax.training.config import TrainConfig

HERE = Path(__file__).parents[2] / "experiments/mini"
# What stands for a training: it says when it began and ended, and fails for seed 5 the first time.
TRAINING = """
import pathlib, sys, time
folder, seed = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / "times", "a") as file: file.write(f"{seed} began\\n")
time.sleep(0.3)
with open(folder / "times", "a") as file: file.write(f"{seed} ended\\n")
first = not (folder / "seen").exists()
if seed == "5":
    (folder / "seen").touch()
    print("it went wrong")
    sys.exit(first)
"""


@pytest.fixture()
def bases(monkeypatch):
    spec = importlib.util.spec_from_file_location("mini_bases", HERE / "bases.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "shares", lambda jobs: [module.Share((0,), {}, "")] * jobs)
    return module


def test_all_are_trained_two_at_a_time_and_what_failed_goes_on(bases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bases, "command", lambda folder, seed: [sys.executable, "-c", TRAINING, str(folder), str(seed)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.json").touch()
    monkeypatch.setattr(bases.subprocess, "run", lambda *a, **k: pytest.fail("data made again"))
    with pytest.raises(SystemExit, match=r"1 of 5 bases failed; .*base-5\.log says why"):
        bases.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert all(f"base-{seed}: done after " in said for seed in (3, 4, 6, 7)) and "base-5: failed, with status 1" in said
    assert (tmp_path / "base-5.log").read_text() == "it went wrong\n"
    at_once, most, seeds = 0, 0, set()
    for line in (tmp_path / "times").read_text().splitlines():
        at_once += 1 if line.endswith("began") else -1
        most = max(most, at_once)
        seeds.add(line.split()[0])
    assert most == 2 and at_once == 0 and seeds == {"3", "4", "5", "6", "7"}
    bases.main([str(tmp_path)])
    assert capsys.readouterr().out.count("done after") == 5


def test_no_training_is_left_running(bases, tmp_path, monkeypatch):
    started = []

    def sleep(seconds):
        started.extend(started_now)
        raise KeyboardInterrupt

    started_now, popen = [], bases.subprocess.Popen
    monkeypatch.setattr(
        bases.subprocess, "Popen", lambda *a, **k: started_now.append(popen(*a, **k)) or started_now[-1]
    )
    monkeypatch.setattr(bases.time, "sleep", sleep)
    monkeypatch.setattr(bases, "command", lambda *a: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(KeyboardInterrupt):
        bases.follow(tmp_path, bases.shares(2))
    assert len(started) == 2 and all(process.returncode == -15 for process in started)


def test_data_are_made_where_they_are_missing(bases, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bases.subprocess, "run", lambda command, check: asked.append(command[1:]))
    monkeypatch.setattr(bases, "follow", lambda workdir, given: [])
    bases.main([str(tmp_path), "--jobs=1"])
    assert asked == [[str(HERE / "prepare.py"), str(tmp_path / "data")]]


def test_bases_differ_in_their_seed_alone(bases, tmp_path):
    configs = {}
    for seed in bases.SEEDS:
        *_, config, workdir, _ = bases.command(tmp_path, seed)
        path, _, about = config.removeprefix("--config=").partition(":")
        configs[seed] = runpy.run_path(path)["get_config"](about)
        assert workdir == f"--workdir={tmp_path / f'base-{seed}'}" and configs[seed].seed == seed
        assert configs[seed].data.seed == seed
        build(TrainConfig, configs[seed])
        configs[seed].seed = configs[seed].data.seed = 0
    assert all(config.to_dict() == configs[3].to_dict() for config in configs.values())
    assert not set(bases.SEEDS) & {0, 1, 2}
