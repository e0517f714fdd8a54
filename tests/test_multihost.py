"""Jobs of several processes, really started: equal to one process, and what happens when one is missing or dies."""

import os
import socket
import subprocess
import sys
import time

import pytest

from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.train import losses
from tests.close import ULP

pytestmark = pytest.mark.slow  # processes that wait for each other

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    shape = dict(vocab_size=258, d_model=32, d_mlp=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
    sources = [dict(kind="synthetic", synthetic=dict(min_len=64))]
    return ConfigDict(dict(
        steps={steps}, save_every=2, tokenizer={tokenizer!r}, model=shape, optim=dict(lr=1e-3, warmup_steps=0),
        mesh=dict({mesh}), data=dict(sources=sources, seq_len=64, batch_size=4),
        eval_data=dict(sources=sources, seq_len=64, batch_size=4, seed=9), eval_every=2, eval_batches=1))
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


def start(config, workdir, process=None, port=0, processes=2, devices=1, more=()):
    command = [
        sys.executable,
        "-m",
        "giraffe_jax.cli",
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        "--quiet",
    ]
    if process is not None:
        command += ["--distributed", f"--coordinator=localhost:{port}", f"--processes={processes}"]
        command += [f"--process-id={process}", *more]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen([*command], env=env, stderr=subprocess.PIPE, text=True)


def end(process, seconds=600):
    _, text = process.communicate(timeout=seconds)
    return process.returncode, text


def rows(workdir):
    return dict(losses(workdir)) if (workdir / "metrics.jsonl").is_file() else {}


def kill(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("mesh", ["fsdp=2", "fsdp=1, context=2", "fsdp=1, tensor=2"])
def test_two_processes_train_as_one_does(tmp_path, mesh):
    config, port = write_config(tmp_path, 4, mesh), free_port()
    job = [start(config, tmp_path / "one", devices=2)]
    job += [start(config, tmp_path / "two", process, port) for process in (0, 1)]
    try:
        for process in job:
            code, text = end(process)
            assert code == 0, text
    finally:
        kill(job)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4]
    assert [two[step] for step in one] == pytest.approx([one[step] for step in one], rel=1024 * ULP)
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("eval_loss") == 2


def test_a_killed_process_ends_the_job_which_goes_on_from_its_checkpoint(tmp_path):
    config = write_config(tmp_path, 3000)
    short = write_config(tmp_path, 3000).read_text()
    assert "steps=3000" in short
    port = free_port()
    job = [start(config, tmp_path / "run", i, port, more=["--heartbeat-timeout=10"]) for i in (0, 1)]
    try:
        began = time.monotonic()
        while len(rows(tmp_path / "run")) < 5:
            assert all(process.poll() is None for process in job) and time.monotonic() - began < 600
            time.sleep(0.05)
        job[1].kill()
        code, text = end(job[0])
        assert code == 1 and "process 0 of 2 has lost another one" in text and "from checkpoint" in text
    finally:
        kill(job)
