"""Jobs of several processes, really started: equal to one process, and what happens when one is missing or dies."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from giraffe_jax import checkpoint
from giraffe_jax.records import read_rows
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.loop import losses
from tests.close import ULP

pytestmark = pytest.mark.slow  # processes that wait for each other

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    shape = dict(vocab_size=258, d_model=32, d_mlp=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16,
        attention="blockwise")
    sources = [dict(kind="synthetic", synthetic=dict(min_len=64))]
    return ConfigDict(dict(
        steps={steps}, save_every=2, tokenizer={tokenizer!r}, model=shape, optim=dict(lr=1e-3, warmup_steps=0),
        mesh=dict({mesh}), data=dict(sources=sources, seq_len=64, batch_size=4),
        eval_data=dict(sources=sources, seq_len=64, batch_size=4, seed=9), eval_every=2, eval_batches=1))
"""


FROM_WEIGHTS = """
from ml_collections import ConfigDict

def get_config():
    data = dict(sources=[dict(kind="synthetic")], seq_len=256, batch_size=4)
    return ConfigDict(dict(source="giraffe-mini", steps={steps}, save_every=2, optim=dict(lr=1e-3, warmup_steps=0),
        mesh=dict(fsdp=2), data=data))
"""


# The command line, and a line on stderr for each file that it opens for writing.
WATCHED = """
import os, runpy, sys

def opened(event, args):
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
        print("writes", args[0], file=sys.stderr, flush=True)

sys.addaudithook(opened)
runpy.run_module("giraffe_jax.cli", run_name="__main__")
"""


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def write_config(folder, steps, mesh="fsdp=2"):
    for name, content in ByteTokenizer().files().items():
        (folder / name).write_bytes(content)
    text = CONFIG.format(steps=steps, mesh=mesh, tokenizer=str(folder / "tokenizer.json"))
    (folder / "run.py").write_text(text)
    return folder / "run.py"


def start(config, workdir, process=None, port=0, processes=2, devices=1, more=(), verb="train", watched=False):
    program = ["-c", WATCHED] if watched else ["-m", "giraffe_jax.cli"]
    command = [sys.executable, *program, verb, f"--config={config}", f"--workdir={workdir}", *more]
    if process is not None:
        command += ["--distributed", f"--coordinator=localhost:{port}", f"--processes={processes}"]
        command += [f"--process-id={process}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen([*command], env=env, stderr=subprocess.PIPE, text=True)


def start_job(config, workdir, **keys):
    port = free_port()
    return [start(config, workdir, i, port, **keys) for i in (0, 1)]


def end(process, seconds=600):
    _, text = process.communicate(timeout=seconds)
    return process.returncode, text


def done(processes):
    """Returns what each process has written to stderr, once all have ended well."""
    said = []
    try:
        for process in processes:
            code, text = end(process)
            assert code == 0, text
            said.append(text)
    finally:
        kill(processes)
    return said


def rows(workdir):
    return dict(losses(workdir)) if (workdir / "metrics.jsonl").is_file() else {}


def kill(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


@pytest.mark.parametrize("mesh", ["fsdp=2", "fsdp=1, context=2", "fsdp=1, tensor=2"])
def test_two_processes_train_as_one_does(tmp_path, mesh):
    config = write_config(tmp_path, 4, mesh)
    done([start(config, tmp_path / "one", devices=2), *start_job(config, tmp_path / "two")])
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4]
    assert [two[step] for step in one] == pytest.approx([one[step] for step in one], rel=1024 * ULP)
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("eval_loss") == 2


EVALUATION = """
from ml_collections import ConfigDict

def get_config(source):
    return ConfigDict(dict(source=source, tasks=[dict(name="lines", lengths=[64, 128], n=6, style="compact")]))
"""


def test_two_processes_start_from_weights_and_what_they_save_is_everybodys(tmp_path):
    """Trained on, resumed by two processes and by one, and measured by both: the same."""

    config, two, one = tmp_path / "run.py", tmp_path / "two", tmp_path / "one"
    config.write_text(FROM_WEIGHTS.format(steps=4))
    done(start_job(config, two))
    shutil.copytree(two, one)
    done(start_job(config, two, more=["--config.steps=6"]))
    done([start(config, one, more=["--config.steps=6", "--config.mesh.fsdp=1"])])
    assert list(rows(one)) == list(rows(two)) == [1, 2, 3, 4, 5, 6]
    assert list(rows(one).values()) == pytest.approx(list(rows(two).values()), rel=1024 * ULP)

    evaluation = tmp_path / "evaluation.py"
    evaluation.write_text(EVALUATION)
    said = done(start_job(f"{evaluation}:{two}", tmp_path / "by two", verb="evaluate", watched=True))
    assert [f"writes {tmp_path / 'by two'}" in text for text in said] == [True, False]
    done([start(f"{evaluation}:{two}", tmp_path / "by one", verb="evaluate")])
    found = [list(read_rows(tmp_path / by / "results.jsonl")) for by in ("by two", "by one")]
    scores = [[row["metrics"] for row in rows if "metrics" in row] for rows in found]
    assert len(scores[0]) == len(scores[1]) == 12
    for here, there in zip(*scores, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-3)


def test_a_killed_process_ends_the_job_which_goes_on_from_its_checkpoint(tmp_path):
    """Started again with as many processes, or with one alone, from what the kill has left."""
    config, lost, alone, whole = tmp_path / "run.py", tmp_path / "lost", tmp_path / "alone", tmp_path / "whole"
    config.write_text(FROM_WEIGHTS.format(steps=3000))  # more than is waited for
    job = start_job(config, lost, more=["--heartbeat-timeout=10"])
    try:
        wait_for(job, lost, 5)
        job[1].kill()
        code, text = end(job[0])
        # Whether a collective fails first, which we explain, or JAX's heartbeat, which aborts, is a race of theirs.
        assert code != 0
        assert code != 1 or ("process 0 of 2 has lost another process" in text and "from checkpoint" in text)
    finally:
        kill(job)
    with checkpoint.manager(lost) as checkpoints:
        saved = checkpoints.latest_step()
    assert saved is not None and saved % 2 == 0

    shutil.copytree(lost, alone)
    more = [f"--config.steps={saved + 5}"]
    done(start_job(config, lost, more=more))
    done([start(config, alone, more=[*more, "--config.mesh.fsdp=1"])])
    done(start_job(config, whole, more=more))
    assert list(rows(whole)) == list(range(1, saved + 6))
    assert rows(lost) == rows(whole)
    assert rows(alone) == pytest.approx(rows(whole), rel=1024 * ULP)


def wait_for(job, workdir, step):
    began = time.monotonic()
    while step not in rows(workdir):
        assert all(process.poll() is None for process in job), [end(process) for process in job]
        assert time.monotonic() - began < 600
        time.sleep(0.05)
