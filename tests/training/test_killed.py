"""A run that is killed again and again, most times while it saves, ends as the run that nothing has disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from giraffe_jax import checkpoint
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.loop import losses

pytestmark = pytest.mark.slow  # 42 runs, one after the other

KILLS = 40
SECONDS = 600  # that nothing takes: the machine is never waited for longer

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    shape = dict(vocab_size=258, d_model=32, d_mlp=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
    data = dict(sources=[dict(kind="synthetic", synthetic=dict(min_len=64))], seq_len=64, batch_size=4)
    optim = dict(lr=1e-3, warmup_steps=0, schedule="constant")
    return ConfigDict(dict(
        steps=100_000, save_every=1, keep=2, tokenizer={tokenizer!r}, model=shape, optim=optim, data=data))
"""


@pytest.fixture
def start(tmp_path):
    """`start(workdir)` is the process of a run, which says what it has to say in tmp_path/said."""
    for name, content in ByteTokenizer().files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "run.py").write_text(CONFIG.format(tokenizer=str(tmp_path / "tokenizer.json")))
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    begun = []

    def run(workdir, *more):
        command = [sys.executable, "-m", "giraffe_jax.cli", "train", f"--config={tmp_path / 'run.py'}"]
        with open(tmp_path / "said", "w") as said:
            begun.append(subprocess.Popen([*command, f"--workdir={workdir}", *more], env=env, stderr=said))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.wait()


def recorded(workdir):
    return max(dict(losses(workdir)), default=0) if (workdir / "metrics.jsonl").is_file() else 0


def unfinished(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def said(tmp_path):
    return (tmp_path / "said").read_text()


def state(workdir):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with checkpoint.manager(workdir) as checkpoints:
        step = checkpoint.find_step(checkpoints)
        tree = checkpoint.saved_tree(checkpoints, step)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
        return paths(checkpoint.restore(checkpoints, step, like))


def test_a_run_killed_forty_times_while_it_saves_is_the_run_that_was_not(tmp_path, start):
    lost, whole, rng, hit = tmp_path / "lost", tmp_path / "whole", random.Random(0), 0
    for number in range(KILLS):
        before, began, process = recorded(lost), time.monotonic(), start(lost)
        while not (recorded(lost) > before and unfinished(lost)):
            assert process.poll() is None and time.monotonic() - began < SECONDS, said(tmp_path)
            time.sleep(0.001)
        # Every other kill may come later, where a save sums, commits and deletes.
        time.sleep(rng.uniform(0, 0.15 if number % 2 else 0.015))
        process.kill()
        assert process.wait() == -signal.SIGKILL, said(tmp_path)
        hit += bool(unfinished(lost))
    assert hit > 0

    steps = recorded(lost) + 5
    for workdir in (lost, whole):
        assert start(workdir, f"--config.steps={steps}").wait(SECONDS) == 0, said(tmp_path)
    assert list(losses(lost)) == list(losses(whole))
    assert [step for step, _ in losses(lost)] == list(range(1, steps + 1))
    got, want = state(lost), state(whole)
    assert got.keys() == want.keys() and want["step"] == steps
    for name, leaf in want.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)
