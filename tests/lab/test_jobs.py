"""`giraffe run --jobs`: several jobs measure what one does, and end together, whoever is interrupted or killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from giraffe_jax import cli, records
from giraffe_jax.lab import shares as lab_shares
from giraffe_jax.lab.estimate import Estimate, Part
from tests import processes

CONFIG = """
import os, signal, sys, time
from pathlib import Path

from ml_collections import ConfigDict

HERE = Path(__file__).parent


def get_config():
    c = ConfigDict()
    c.name, c.source = "shared", "giraffe-mini"
    c.variants = [dict(name=f"ntk {{k}}", positions=[dict(name="ntk", factor=1.0 + k)]) for k in range({variants})]
    data = dict(seq_len=32, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(kinds=("lines",)))])
    train = dict(steps={steps}, save_every={steps}, data=data, optim=dict(warmup_steps=0, schedule="constant"))
    c.variants += [dict(v, name="trained " + v["name"], train=train) for v in c.variants[:{trained}]]
    c.tasks = [dict(name="lines", lengths=[48, 64], n=4, style="compact")]
    return c


if sys.argv[0] == "giraffe":  # in a job
    import giraffe_jax.lab.run as r

{job}
"""
CELLS = """
    measure = r._measure_cell

    def other(config, cell, *rest):
        {at_a_cell}
        return measure(config, cell, *rest)

    r._measure_cell = other
"""

needs_two_cores = pytest.mark.skipif(len(lab_shares._cores()) < 2, reason="two jobs need two cores")


@pytest.fixture
def write(tmp_path):
    def write(job="    pass", at_a_cell="", variants=3, trained=0, steps=2):
        job = CELLS.format(at_a_cell=at_a_cell.replace("\n", "\n        ")) if at_a_cell else job
        (tmp_path / "config.py").write_text(CONFIG.format(variants=variants, trained=trained, steps=steps, job=job))
        return str(tmp_path / "config.py")

    return write


def rows(workdir):
    return list(records.read_rows(workdir / "results.jsonl", lambda line: None))


def done(workdir):
    return sorted((row["variant"], row["length"]) for row in rows(workdir) if row.get("kind") == "done")


def every(variants):
    return sorted((f"ntk {k}", length) for k in range(variants) for length in (48, 64))


@needs_two_cores
@pytest.mark.parametrize("trained", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_jobs_write_the_rows_and_tables_of_one_process(write, tmp_path, capfd, trained):
    config = write(variants=3 - trained, trained=trained)
    assert cli.main(["run", config, f"--workdir={tmp_path / '1'}"]) == 0
    capfd.readouterr()
    assert cli.main(["run", config, f"--workdir={tmp_path / '2'}", "--jobs=2"]) == 0
    said = capfd.readouterr().out
    one, two = (sorted(map(values, rows(tmp_path / name)), key=name_of) for name in "12")
    assert [name_of(row) for row in one] == [name_of(row) for row in two] and len(one) == 3 * 2 * 5
    for row, other in zip(one, two, strict=True):
        assert flat(row, float) == pytest.approx(flat(other, float), rel=1e-4, abs=1e-4)
        assert flat(row, str | int | list) == flat(other, str | int | list)
    tables = [
        [line for line in (tmp_path / name / "tables.md").read_text().splitlines() if "|" in line] for name in "12"
    ]
    assert tables[0] == tables[1]
    assert "6 of 6 cells to measure" in said and "by 2 jobs" in said and "6/6  " in said
    assert [line.strip().split("/")[0] for line in said.splitlines() if "/6  " in line] == list("123456")
    assert cli.main(["run", config, f"--workdir={tmp_path / '2'}", "--jobs=2"]) == 0
    assert len(rows(tmp_path / "2")) == len(two) and "to measure" not in capfd.readouterr().out


def values(row):
    return {key: value for key, value in row.items() if key != "seconds"}


def name_of(row):
    return row["variant"], row["length"], row.get("kind", ""), row.get("example", -1)


def flat(row, kinds, prefix=""):
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, kinds, f"{prefix}{key}.")
        elif isinstance(value, kinds):
            found[prefix + key] = value
    return found


@needs_two_cores
def test_a_killed_jobs_cells_are_measured_by_the_others_and_failed_ones_are_tried_once(write, tmp_path, capfd):
    config = write(
        at_a_cell="""
if (cell.variant.name, cell.length) == ("ntk 1", 64):
    try:
        os.close(os.open(HERE / "killed", os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
if cell.variant.name == "ntk 0":
    r._record(rest[2], cell, failure=ValueError("it fails"))
    return "failed\""""
    )
    assert cli.main(["run", config, f"--workdir={tmp_path / 'run'}", "--jobs=2"]) == 1
    said = capfd.readouterr().out
    assert "was killed (SIGKILL)" in said and "at: ntk 1, lines, 64; the others go on" in said
    assert done(tmp_path / "run") == every(3)[2:]
    assert [row["length"] for row in rows(tmp_path / "run") if row.get("kind") == "failure"] == [48, 64]
    assert "2 cells failed" in said and "cells are not measured" not in said


@needs_two_cores
@pytest.mark.slow
def test_when_all_jobs_are_killed_the_command_says_so_and_another_number_goes_on(write, tmp_path, capfd):
    kill = 'if cell.length == 64 and (HERE / "kill").exists():\n    os.kill(os.getpid(), signal.SIGKILL)'
    config = write(at_a_cell=kill)
    (tmp_path / "kill").touch()
    assert cli.main(["run", config, f"--workdir={tmp_path / 'run'}", "--jobs=2"]) == 1
    said = capfd.readouterr().out
    before = done(tmp_path / "run")
    assert said.count("was killed (SIGKILL)") == 2 and len(before) == 2
    assert "4 cells are not measured; the same command, with any --jobs, resumes with them" in said
    (tmp_path / "kill").unlink()
    assert cli.main(["run", config, f"--workdir={tmp_path / 'run'}", "--jobs=1"]) == 0
    assert done(tmp_path / "run") == every(3)


HANG = """
    def hang(*args, **keys):
        (HERE / f"at-{{os.getpid()}}").touch()
        {wait}

    r.measure = hang
"""
WRONG = """
    def wrong(*args, **keys):
        raise r.ConfigError("config.x: no")

    r.measure = wrong
"""
SLEEP = "time.sleep(600)"
DEAF = "try:\n            time.sleep(600)\n        finally:\n            time.sleep(600)"


@needs_two_cores
@pytest.mark.parametrize(
    ("wait", "signals", "status", "word"),
    [
        (SLEEP, [signal.SIGINT], 130, "all jobs have ended, with 0 of 6 cells measured"),
        pytest.param(DEAF, [signal.SIGINT, signal.SIGINT], 130, "told to end twice", marks=pytest.mark.slow),
        pytest.param(SLEEP, [signal.SIGKILL], -signal.SIGKILL, "", marks=pytest.mark.slow),
    ],
    ids=["once", "twice", "killed"],
)
def test_no_job_outlives_the_command(write, tmp_path, wait, signals, status, word):
    command = [sys.executable, "-m", "giraffe_jax.cli", "run", write(HANG.format(wait=wait))]
    command += [f"--workdir={tmp_path / 'run'}", "--jobs=2"]
    with open(tmp_path / "said", "w+") as said:
        process = processes.start(command, stdout=said, stderr=subprocess.STDOUT)
        wait_for(lambda: len(list(tmp_path.glob("at-*"))) == 2, process)
        for i, number in enumerate(signals):
            if i:
                wait_for(lambda: "ending all jobs" in (tmp_path / "said").read_text(), process)
            process.send_signal(number)
        process.wait(120)
    text = (tmp_path / "said").read_text()
    assert process.returncode == status and word in text and "Traceback" not in text, text
    jobs = [int(path.name.removeprefix("at-")) for path in tmp_path.glob("at-*")]
    wait_for(lambda: not any(map(alive, jobs)))


@needs_two_cores
@pytest.mark.slow
def test_an_interrupt_of_the_terminal_saves_trainings_that_run_side_by_side(write, tmp_path):
    command = [sys.executable, "-m", "giraffe_jax.cli", "run", write(variants=2, trained=2, steps=100_000)]
    command += [f"--workdir={tmp_path / 'run'}", "--jobs=2"]
    metrics = [tmp_path / "run" / "train" / records.slug(f"trained ntk {k}") / "metrics.jsonl" for k in (0, 1)]
    with open(tmp_path / "said", "w") as said:
        process = processes.start(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(lambda: all(path.is_file() and path.stat().st_size for path in metrics), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command's group
        process.wait(120)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 130 and "with 0 of 8 cells measured" in text, text
    for path in metrics:
        last = max(row["step"] for row in records.read_rows(path))
        assert [int(folder.name) for folder in (path.parent / "checkpoints").glob("[0-9]*")] == [last]


def wait_for(what, process=None):
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


def alive(pid):
    with contextlib.suppress(OSError):  # of a process that has ended
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@needs_two_cores
@pytest.mark.slow
def test_what_every_job_refuses_is_said_as_one_process_says_it(write, tmp_path, capfd):
    config = write(
        "    def wrong(*args, **keys):\n        raise r.ConfigError('config.x: no')\n\n    r.measure = wrong"
    )
    assert cli.main(["run", config, f"--workdir={tmp_path / 'run'}", "--jobs=2"]) == 2
    assert capfd.readouterr().err == "giraffe: config.x: no\n" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--jobs=0"], "--jobs"),
        (["--jobs=-2"], "--jobs"),
        (["--jobs=two"], "expected a whole number"),
        (["--jobs=2", "--distributed"], "--jobs: got 2 with --distributed"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(write, tmp_path, capfd, flags, said):
    assert cli.main(["run", write(), f"--workdir={tmp_path / 'run'}", *flags]) == 2
    assert said in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.fixture
def machine(monkeypatch):
    """`machine(cores, gpus)` is a machine whose core n and n + cores / 2 are threads of one."""

    def machine(cores, gpus=()):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(lab_shares, "_place", lambda core: (0, core % (cores // 2)))
        monkeypatch.setattr(lab_shares, "_gpus", lambda: list(gpus))

    for name in (*lab_shares.THREADS, lab_shares.FRACTION, lab_shares.OLD_FRACTION, lab_shares.GPUS, "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return machine


def test_cores_are_divided_and_threads_of_one_core_stay_together(machine, monkeypatch):
    machine(8)
    given = lab_shares.shares(3)
    assert sorted(core for share in given for core in share.cores) == list(range(8))
    assert given[0].cores == (0, 4) and {len(share.cores) for share in given} == {2, 3}
    assert [share.env["OMP_NUM_THREADS"] for share in given] == [str(len(share.cores)) for share in given]
    assert lab_shares.in_words(given) == "3 jobs, 2 cores each" and lab_shares.GPUS not in given[0].env
    assert [len(share.cores) for share in lab_shares.shares(100)] == [1] * 8
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert {share.env["OMP_NUM_THREADS"] for share in lab_shares.shares(2)} == {"1"}


def test_a_gpus_memory_is_divided_and_several_are_dealt_out(machine, monkeypatch):
    machine(8, "0")
    given = lab_shares.shares(2)
    assert [share.env[lab_shares.FRACTION] for share in given] == ["0.450", "0.450"]
    assert lab_shares.in_words(given) == "2 jobs, 4 cores and 45% of a GPU's memory each"
    machine(8, "0123")
    assert [share.env[lab_shares.GPUS] for share in lab_shares.shares(2)] == ["0,1", "2,3"]
    assert lab_shares.FRACTION not in lab_shares.shares(4)[0].env
    assert [share.env[lab_shares.GPUS] for share in lab_shares.shares(8)] == list("01230123")
    monkeypatch.setenv(lab_shares.OLD_FRACTION, "0.6")
    assert lab_shares.shares(8)[0].env[lab_shares.OLD_FRACTION] == "0.300"


@needs_two_cores
def test_what_is_started_inside_a_share_has_its_cores():
    share, before = lab_shares.shares(2)[1], os.sched_getaffinity(0)
    with lab_shares.inside(share):
        told = subprocess.check_output([sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"])
    assert told.decode().strip() == str(sorted(share.cores)) and os.sched_getaffinity(0) == before


def test_jobs_take_as_long_as_the_one_that_ends_last():
    parts = [Part("lines", "", 7.0, ""), Part("compilation", "", 10.0, "")]
    models = {"a": 2.0, "b": 3.0, "c": 2.0}
    assert Estimate(3, 0, parts, models).seconds == 17.0
    assert [Estimate(3, 0, parts, models, jobs).seconds for jobs in (2, 3, 9)] == [14.0, 13.0, 13.0]
    assert str(Estimate(3, 0, parts, models, 2)).endswith("2 jobs side by side on this machine take about 14s.")
