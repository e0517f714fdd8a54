"""What a run says of itself, and how it ends when it is told to: at a step's end with a save, without a traceback."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import giraffe_jax.training.loop
import giraffe_jax.training.program
from giraffe_jax import checkpoint
from giraffe_jax.config import build
from giraffe_jax.data.config import DataConfig
from giraffe_jax.records import TrainLog, read_rows
from giraffe_jax.training.loop import train
from tests import processes
from tests.training.test_train import settings

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    shape = dict(vocab_size=258, d_model=32, d_mlp=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
    data = dict(sources=[dict(kind="synthetic", synthetic=dict(min_len=64))], seq_len=64, batch_size=4)
    return ConfigDict(dict(steps=100_000, save_every=100_000, tokenizer={tokenizer!r}, model=shape, data=data,
                           optim=dict(lr=1e-3, warmup_steps=0)))
"""
SECONDS = 600  # that nothing takes


def start(folder, tokenizer):
    (folder / "run.py").write_text(CONFIG.format(tokenizer=str(tokenizer)))
    command = [sys.executable, "-m", "giraffe_jax.cli", "train", f"--config={folder}/run.py", f"--workdir={folder}/run"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return processes.start(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process, folder):
    file, began = folder / "run" / "metrics.jsonl", time.monotonic()
    before = file.stat().st_size if file.is_file() else 0
    while not (file.is_file() and file.stat().st_size > before):
        assert process.poll() is None and time.monotonic() - began < SECONDS
        time.sleep(0.05)


def steps_of(folder):
    return [row["step"] for row in read_rows(folder / "run" / "metrics.jsonl") if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_saves_its_step_and_goes_on_from_it(tmp_path, tokenizer, number):
    last = 0
    for _ in range(2):
        process = start(tmp_path, tokenizer)
        wait_for_steps(process, tmp_path)
        process.send_signal(number)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 130 and "Traceback" not in said, said
        assert "ending after this step" in said
        with checkpoint.manager(tmp_path / "run") as checkpoints:
            saved = checkpoint.latest_good(checkpoints)
        assert saved is not None and saved > last and f"giraffe: told to end: step {saved} is saved" in said
        assert steps_of(tmp_path) == list(range(1, saved + 1))
        last = saved


@pytest.mark.slow
def test_told_twice_it_ends_at_once_and_what_was_saved_is_whole(tmp_path, tokenizer):
    process = start(tmp_path, tokenizer)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "Traceback" not in said and "giraffe: " in said, said
    with checkpoint.manager(tmp_path / "run") as checkpoints:
        assert all(checkpoint.damage(checkpoints, step) is None for step in checkpoint.steps(checkpoints))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0])
def test_sigint_before_the_first_step_is_one_line(tmp_path, tokenizer, seconds):
    process = start(tmp_path, tokenizer)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds + 0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    assert "Traceback" not in said and process.returncode in (130, -signal.SIGINT), said


def test_a_run_says_what_it_is_and_what_happens(tmp_path, tokenizer, capsys, monkeypatch):
    losses = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(giraffe_jax.training.loop, "_held_out_loss", lambda *_: next(losses))
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, steps=6, keep=1, save_every=5, eval_every=2, eval_batches=1, accumulate=1)
    config |= dict(eval_data=data | dict(seed=9), optim=dict(lr=1e-2), mesh=dict(fsdp=8))
    train(config, tmp_path)
    said = capsys.readouterr().err
    for text in ("source: random weights, ",
                 " parameters, computed in float32, matmuls at highest precision\ntrained: ",
                 f"embedding {258 * 16:,}, unembedding {258 * 16:,}, norms {5 * 16}, attention ",
                 "positions: linear, randomize, trained to 64 before",
                 "\nattention: dense, 1 band; linear, mlp, norm, loss by XLA\nmesh: data=1 fsdp=8 ",
                 "warning: optim.warmup_steps 20 is not less than steps 6: ",
                 "data: longest document 128 tokens; in the first batch ", " a row, positions are drawn by random",
                 "mesh: data=1 fsdp=8 context=1 tensor=1, 8 x cpu", "batch: 8 x 128 = 1,024 tokens a step",
                 f"{tmp_path}: 6 steps to 6, from the start", "step 2: eval_loss 5.0000, the best so far, saved",
                 "step 4: eval_loss 4.0000, the best so far, saved", "step 5: saved", "step 6: eval_loss 4.5000, saved",
                 ):  # fmt: skip
        assert text in said, text
    with checkpoint.manager(tmp_path) as checkpoints:  # the best is kept although no multiple of save_every is it
        assert checkpoint.steps(checkpoints) == [4, 6] and checkpoint.find_step(checkpoints, "best") == 4
    train(config, tmp_path)
    assert f"{tmp_path}: all 6 steps are done" in capsys.readouterr().err


def test_the_best_so_far_is_remembered_over_a_stop(tmp_path, tokenizer, monkeypatch):
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, keep=1, save_every=100, eval_every=1, eval_batches=1, optim=dict(lr=1e-2))
    config |= dict(eval_data=data | dict(seed=9))
    for steps, values in ((2, [3.0, 4.0]), (5, [3.5, 3.2, 6.0])):
        losses = iter(values)
        monkeypatch.setattr(giraffe_jax.training.loop, "_held_out_loss", lambda *_, losses=losses: next(losses))
        train(config | dict(steps=steps), tmp_path, quiet=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.steps(checkpoints) == [1, 5]  # neither 3 nor 4 is better than 1


def test_throughput_is_of_steps_alone(tmp_path, tokenizer, monkeypatch):
    """The first step, which compiles, has none; evaluation and saving are not counted: a slow one changes nothing."""
    now = [0.0]

    def held_out_loss(*_):
        now[0] += 1000.0
        return 1.0

    def step(*args, **keys):
        now[0] += 2.0
        return real(*args, **keys)

    real = giraffe_jax.training.program.train_step
    monkeypatch.setattr(giraffe_jax.training.program, "train_step", step)
    monkeypatch.setattr(giraffe_jax.training.loop, "_held_out_loss", held_out_loss)
    monkeypatch.setattr(giraffe_jax.training.loop.time, "perf_counter", lambda: now[0])
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, steps=9, eval_data=data, eval_every=3, save_every=3)
    train(config, tmp_path, quiet=True)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert "tokens_per_second" not in rows[0]
    seconds = [row["tokens"] / row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    assert len(seconds) >= 4 and sum(seconds) <= 2.0 * 9


@pytest.mark.parametrize(("filled", "text"), [(8, ""), (4, ""), (2, "warning: 75% of the first batch is padding")])
def test_a_batch_that_is_mostly_padding_is_said(filled, text):
    segments = np.zeros((2, 8), np.int32)
    segments[:, :filled] = 1
    data = build(DataConfig, dict(seq_len=8, batch_size=2))
    said = giraffe_jax.training.header.padding({"segments": segments}, data)
    assert said.startswith(text) and bool(said) == bool(text)


def test_tokenising_says_how_far_it_is(tmp_path, tokenizer, capsys, monkeypatch):
    from giraffe_jax.data import source
    from giraffe_jax.tokenizer import ByteTokenizer

    monkeypatch.setattr(source, "Progress", lambda *args, after, **keys: real(*args, after=0.0, **keys))
    real = giraffe_jax.records.progress.Progress
    (tmp_path / "a.txt").write_text("words " * 100)
    source.load_tokens("text", str(tmp_path / "a.txt"), ByteTokenizer(), str(tmp_path / "cache"))
    assert "about 99% of its files" in capsys.readouterr().err

    source.load_tokens("text", str(tmp_path / "a.txt"), ByteTokenizer(), str(tmp_path / "cache"))
    assert capsys.readouterr().err == ""


@pytest.fixture
def heard():
    """SIGINT as in a foreground job: a shell's background jobs, and what they start, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once_and_handlers_are_put_back(tmp_path, capsys, number):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="told to end twice"):
        with giraffe_jax.training.signals._told_to_end(TrainLog(tmp_path, tensorboard=False)) as told:
            signal.raise_signal(number)
            assert told == [number] and "ending after this step" in capsys.readouterr().err
            signal.raise_signal(number)
            pytest.fail("it went on")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    try:
        with giraffe_jax.training.signals._told_to_end(TrainLog(tmp_path, tensorboard=False)) as told:
            signal.raise_signal(signal.SIGINT)
            assert told == [] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("last", [False, True])
def test_told_in_a_step_it_ends_with_that_step_saved_and_a_run_that_is_done_is_done(
    tmp_path, tokenizer, monkeypatch, last
):
    def step(*args, **keys):
        if int(args[0].step) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **keys)

    real = giraffe_jax.training.program.train_step
    monkeypatch.setattr(giraffe_jax.training.program, "train_step", step)
    config = settings(tokenizer, steps=2 if last else 6, save_every=100)
    if last:
        try:
            train(config, tmp_path, quiet=True)
        except KeyboardInterrupt as told:  # which would end pytest
            pytest.fail(str(told))
    else:
        with pytest.raises(KeyboardInterrupt, match="told to end: step 2 is saved"):
            train(config, tmp_path, quiet=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.steps(checkpoints) == [2]


def test_a_run_in_a_thread_handles_no_signals(tmp_path):
    def enter():
        with giraffe_jax.training.signals._told_to_end(TrainLog(tmp_path, tensorboard=False)) as told:
            found.append(told)

    found: list = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [[]]
