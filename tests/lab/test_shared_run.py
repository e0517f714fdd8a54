"""Several processes on one experiment: no cell twice, none lost, whoever is killed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from giraffe_jax import records

VARIANTS = 8
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.name, c.source = "shared", "giraffe-mini"
    c.variants = [dict(name=f"ntk {{k}}", positions=[dict(name="ntk", factor=1.0 + k)]) for k in range({variants})]
    c.tasks = [dict(name="lines", lengths=[64, 256], n=20, style="compact"), dict(name="passkey", lengths=[256], n=8)]
    c.tasks[1]["style"] = "compact"
    return c
"""


def start(config, workdir):
    command = [sys.executable, "-m", "giraffe_jax.cli", "run", str(config), f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_processes_and_a_third_after_one_is_killed(tmp_path):
    config, workdir = tmp_path / "shared.py", tmp_path / "run"
    config.write_text(CONFIG.format(variants=VARIANTS))
    first, second = start(config, workdir), start(config, workdir)
    results = workdir / "results.jsonl"
    deadline = time.monotonic() + 300
    while not results.is_file() or results.read_bytes().count(b'"done"') < 4:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    third = start(config, workdir)
    for process in (second, third):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    first.communicate()
    last, _ = (again := start(config, workdir)).communicate(timeout=300)  # whatever the killed one had begun
    assert again.returncode == 0 and "cells to measure" not in last
    rows = list(records.read_rows(results, lambda line: None))
    done = [(row["variant"], row["task"], row["length"]) for row in rows if row.get("kind") == "done"]
    assert len(done) == len(set(done)) == 3 * VARIANTS
    page = (workdir / "tables.md").read_text()
    assert all(f"| ntk {k} |" in page for k in range(VARIANTS))
    assert json.loads((workdir / "experiment.json").read_text())["config"]["name"] == "shared"
