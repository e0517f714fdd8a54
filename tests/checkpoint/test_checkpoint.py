"""Checkpoints notice: whatever happens to a file is named, and the checkpoint before it is used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.experimental import multihost_utils

from giraffe_jax import checkpoint
from giraffe_jax.checkpoint import checksums
from giraffe_jax.config import ConfigError

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def state(step):
    """Arrays of several types and sizes, which say what step they are of."""
    draw = np.random.default_rng(step)
    kernel, scale = draw.normal(size=(64, 48)).astype(np.float32), jnp.full((40,), step, jnp.bfloat16)
    return {"params": {"kernel": jnp.asarray(kernel), "norm": {"scale": scale}}, "step": jnp.int32(step)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=DEVICE), state(0))


def write(workdir, steps, losses=(), **keys):
    """Saves checkpoints; `losses` are theirs, in order, as far as they go."""
    with checkpoint.manager(workdir, best="eval_loss" if losses else None, **keys) as checkpoints:
        for step, loss in zip(steps, [*losses, *[None] * len(steps)], strict=False):
            metrics = None if loss is None else {"eval_loss": loss}
            checkpoint.save(checkpoints, step, state(step), {"next_step": step, "text": "é"}, metrics)
        checkpoints.wait_until_finished()


def same(restored, step):
    return jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), restored, state(step)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir with checkpoints 20 and 40, each saved with its eval_loss; to be copied."""
    workdir = tmp_path_factory.mktemp("made") / "run"
    write(workdir, [20, 40], [2.0, 1.0])
    return workdir


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest(run):
    """(the step that is gone on from, what was said), once it has been restored and found to be as saved."""
    said: list[str] = []
    with checkpoint.manager(run) as checkpoints:
        step = checkpoint.latest_good(checkpoints, said.append)
        if step is not None:
            assert same(checkpoint.restore(checkpoints, step, LIKE), step)
            assert checkpoint.read_about(checkpoints, step) == {"next_step": step, "text": "é"}
    return step, said


def assert_40_is_damaged(run, name, what):
    """Every way to read checkpoint 40 names the file and what it has, and 20 is gone on from."""
    text = f"checkpoints/40/{name}: {what}"
    step, said = newest(run)
    assert (step, said) == (20, [f"{run}: checkpoint 40 is damaged ({text}): going on from 20"])
    with checkpoint.manager(run, keep=2, best="eval_loss") as checkpoints:
        assert checkpoint.damage(checkpoints, 40) == text and checkpoint.damage(checkpoints, 20) is None
        for attempt in (
            lambda: checkpoint.find_step(checkpoints, 40, said.append),
            lambda: checkpoint.restore(checkpoints, 40, LIKE),
            lambda: checkpoint.restore(checkpoints, 40, {"params": LIKE["params"]}),
        ):
            with pytest.raises(ConfigError) as error:
                attempt()
            assert text in str(error.value) and str(run) in str(error.value)
        for reader in (checkpoint.saved_tree, checkpoint.read_about):
            try:  # what they read may be whole
                reader(checkpoints, 40)
            except ConfigError as error:
                assert "checkpoint 40 in" in str(error) and str(run) in str(error)
        assert checkpoint.find_step(checkpoints, "best", said.append) == 20 and text in said[-1]


def test_whole_checkpoints_verify_and_nothing_is_said(run):
    assert newest(run) == (40, [])
    for step in (20, 40):
        folder = run / "checkpoints" / str(step)
        summed = json.loads((folder / "checksums.json").read_text())["files"]
        assert sorted(summed) == sorted(
            set(path.relative_to(folder).as_posix() for path in files(folder)) - {"checksums.json"}
        )


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_is_found(run, seed):
    draw = np.random.default_rng(seed)
    there = files(run / "checkpoints" / "40")
    path = there[seed % len(there)] if seed % 2 else there[draw.integers(len(there))]
    data = bytearray(path.read_bytes())
    data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
    path.write_bytes(data)
    assert_40_is_damaged(run, path.relative_to(run / "checkpoints" / "40").as_posix(), "changed")


@pytest.mark.parametrize("seed", range(12))
def test_a_truncated_file_is_found(run, seed):
    draw = np.random.default_rng(100 + seed)
    there = files(run / "checkpoints" / "40")
    path = there[draw.integers(len(there))]
    size, left = path.stat().st_size, int(draw.integers(path.stat().st_size)) * (seed > 2)
    os.truncate(path, left)
    name = path.relative_to(run / "checkpoints" / "40").as_posix()
    assert_40_is_damaged(run, name, "changed" if name == checkpoint.SUMS else f"truncated from {size} to {left} bytes")


def test_any_file_that_is_missing_is_named(run):
    folder = run / "checkpoints" / "40"
    for path in files(folder):
        if path.name == checkpoint.SUMS:
            continue
        data = path.read_bytes()
        path.unlink()
        assert newest(run)[1][0].endswith(
            f"(checkpoints/40/{path.relative_to(folder).as_posix()}: missing): going on from 20"
        )
        path.write_bytes(data)
    assert newest(run) == (40, [])
    shutil.rmtree(folder / "state")
    assert newest(run)[0] == 20


def test_a_file_that_has_grown_or_become_a_folder_is_named(run):
    path = run / "checkpoints" / "40" / "about" / "metadata"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b" " * 3)
    assert_40_is_damaged(run, "about/metadata", f"grown from {size} to {size + 3} bytes")
    path.unlink()
    path.mkdir()
    assert "40/about/metadata: " in newest(run)[1][0]


def test_what_was_verified_once_is_so_for_its_manager_and_until_it_is_asked_again(run):
    path = run / "checkpoints" / "40" / "about" / "metadata"
    text = "checkpoints/40/about/metadata: changed"
    with checkpoint.manager(run) as checkpoints:
        assert checkpoint.latest_good(checkpoints) == 40 and checkpoints.verified == {40}
        path.write_bytes(path.read_bytes().replace(b"40", b"41"))  # still the JSON of a checkpoint
        assert checkpoint.read_about(checkpoints, 40)["next_step"] == 41
        assert checkpoint.damage(checkpoints, 40) == text and checkpoints.verified == set()
    with checkpoint.manager(run) as checkpoints:
        with pytest.raises(ConfigError, match=rf"checkpoint 40 in .* is damaged: {text}"):
            checkpoint.read_about(checkpoints, 40)


def test_a_process_reads_a_file_once_for_all_managers_until_it_changes(run, monkeypatch):
    monkeypatch.setattr(checksums, "RACY_NS", 0)  # files this young are read again otherwise
    real, read = checksums._sum, []
    monkeypatch.setattr(checksums, "_sum", lambda path: read.append(path.name) or real(path))
    assert newest(run) == (40, []) and read
    read.clear()
    assert newest(run) == (40, []) and not read
    path = run / "checkpoints" / "40" / "about" / "metadata"
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(data.replace(b"40", b"41"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and age: its ctime tells
    assert_40_is_damaged(run, "about/metadata", "changed")


def test_saving_does_not_wait_for_the_checksums_but_the_checkpoint_does(tmp_path, monkeypatch):
    real, go, went = checksums._write_sums, threading.Event(), []

    def late(folder):
        went.append(go.wait(60))
        real(folder)

    monkeypatch.setattr(checksums, "_write_sums", late)
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, state(1), {"next_step": 1, "text": "é"})
        assert checkpoint.steps(checkpoints) == []
        go.set()
        checkpoints.wait_until_finished()
        assert went == [True] and checkpoint.steps(checkpoints) == [1]
    assert newest(tmp_path) == (1, [])


@pytest.mark.parametrize(
    "stray",
    ["99/", "foo/", "foo/x", "100.orbax-checkpoint-tmp/state/x", "101.orbax-checkpoint-tmp-7/", "notes", "0100/x"],
)
def test_what_else_lies_in_the_folder_is_ignored(run, stray):
    path = run / "checkpoints" / stray
    path.parent.mkdir(parents=True, exist_ok=True)
    if stray.endswith("/"):
        path.mkdir(exist_ok=True)
    else:
        path.write_text("{}")
    assert newest(run) == (40, [])
    with checkpoint.manager(run, keep=2, best="eval_loss") as checkpoints:
        assert checkpoint.steps(checkpoints) == list(checkpoints.all_steps()) == [20, 40]
        for step in (99, 100, 101):  # and is not in the way
            checkpoint.save(checkpoints, step, state(step), {}, {"eval_loss": 3.0})
    with checkpoint.manager(run) as checkpoints:
        assert checkpoint.steps(checkpoints) == [40, 100, 101]


def test_a_foreign_folder_is_named_and_never_deleted(run):
    (run / "checkpoints" / "60" / "mine").mkdir(parents=True)
    (run / "checkpoints" / "60" / "mine" / "x").write_text("dear to me")
    step, said = newest(run)
    assert (step, said) == (
        40,
        [f"{run}: checkpoint 60 is damaged (checkpoints/60: not a checkpoint): going on from 40"],
    )
    with checkpoint.manager(run) as checkpoints:
        place = checkpoint.set_aside(checkpoints, 60)
        checkpoint.save(checkpoints, 60, state(60), {})
    assert place == str(run / "damaged" / "60") and (run / "damaged/60/mine/x").read_text() == "dear to me"


def without_sums(run):
    for path in run.rglob(checkpoint.SUMS):
        path.unlink()


def test_a_checkpoint_without_checksums_is_used_and_said_to_be_unverified(run):
    without_sums(run)
    step, said = newest(run)
    assert step == 40 and said == [f"{run}: checkpoint 40 has no checksums.json to verify it by: used as it is"]
    with checkpoint.manager(run) as checkpoints:
        assert checkpoint.find_step(checkpoints, "20", said.append) == 20 and "checkpoint 20 has no" in said[-1]


def test_a_checkpoint_that_orbax_alone_has_written_is_used(tmp_path):
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path / "run" / "checkpoints", item_handlers=handlers) as old:
        about = {"next_step": 7, "text": "é"}
        old.save(7, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state(7)), about=ocp.args.JsonSave(about)))
    step, said = newest(tmp_path / "run")
    assert step == 7 and len(said) == 1


@pytest.mark.parametrize("name", ["state/_METADATA", "about/metadata", "state", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"tree_metadata": 3, "item_handlers": 3}', None])
def test_an_unverified_checkpoint_never_ends_in_an_error_of_orbax(run, name, content):
    without_sums(run)
    path = run / "checkpoints" / "40" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content is not None:
        path.write_bytes(content)
    with checkpoint.manager(run, keep=2, best="eval_loss") as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert checkpoint.latest_good(checkpoints) in (20, 40)
        for reader in (checkpoint.read_about, checkpoint.saved_tree, lambda c, s: checkpoint.restore(c, s, LIKE)):
            try:
                reader(checkpoints, 40)
            except ConfigError as error:
                assert "checkpoint 40 in" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff", b'{"eval_loss": "low"}', b'{"eval_losr": 1.0}', b"[" * 100_000]
)
def test_damaged_metrics_keep_no_one_from_opening_and_saving(run, content):
    (run / "checkpoints" / "40" / "metrics" / "metrics").write_bytes(content)
    said: list[str] = []
    with checkpoint.manager(run, keep=1, best="eval_loss") as checkpoints:
        assert checkpoint.find_step(checkpoints, "best", said.append) == 20 and len(said) == 1
        checkpoint.save(checkpoints, 60, state(60), {}, {"eval_loss": 3.0})
    with checkpoint.manager(run) as checkpoints:
        assert checkpoint.steps(checkpoints) == [20, 60]


def test_deletion_takes_the_checksums_along(tmp_path):
    write(tmp_path, [1, 2, 3, 4], [2.0, 1.0, 3.0, 4.0], keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    assert len(list(tmp_path.rglob(checkpoint.SUMS))) == 2


def test_find_step(run):
    def find(which):
        said: list[str] = []
        with checkpoint.manager(run) as checkpoints:
            step = checkpoint.find_step(checkpoints, which, said.append)
            assert not said and checkpoints.verified == {step}
            return step

    assert [find(which) for which in (None, "", 20, "20", "best")] == [40, 40, 20, 20, 40]
    for which, what in (
        (30, r"holds no checkpoint 30; there are 20, 40\."),
        ("last", r"got 'last' .* 20, 40, \"best\""),
    ):
        with pytest.raises(ConfigError, match=what):
            find(which)
    write(run, [60])  # without eval_loss
    assert (find(None), find("best")) == (60, 40)
    (run / "checkpoints" / "60" / "commit_success.txt").write_text("")
    with pytest.raises(
        ConfigError, match=r"checkpoint 60 is damaged \(.*success.txt: truncated .*; the nearest good one is 40"
    ):
        find("60")
    for step in (20, 40):
        shutil.rmtree(run / "checkpoints" / str(step))
    with pytest.raises(ConfigError, match=r"all of its checkpoints are damaged: 60; .*checkpoints/60/commit_success"):
        with pytest.warns(UserWarning, match="no other one is left"), checkpoint.manager(run) as checkpoints:
            checkpoint.find_step(checkpoints)
    with pytest.raises(ConfigError, match="no other one is good"):
        find(60)


def test_find_step_where_there_is_none(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.latest_good(checkpoints) is None and checkpoint.steps(checkpoints) == []
        with pytest.raises(ConfigError, match="holds no checkpoint"):
            checkpoint.find_step(checkpoints)
    write(tmp_path, [1])
    with checkpoint.manager(tmp_path) as checkpoints:
        with pytest.raises(ConfigError, match=r"its config has eval_data\. There are 1\."):
            checkpoint.find_step(checkpoints, "best")


def test_best_is_not_a_number_that_is_none(tmp_path):
    write(tmp_path, [1, 2, 3], [float("nan"), 5.0, float("inf")])
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.find_step(checkpoints, "best") == 2


def test_best_is_of_the_data_that_the_newest_was_measured_on(tmp_path):
    with checkpoint.manager(tmp_path, best="eval_loss") as checkpoints:
        for step, loss, data in ((1, 1.0, 7), (2, 5.0, 8), (3, 6.0, 8)):
            checkpoint.save(checkpoints, step, state(step), {}, {"eval_loss": loss, checkpoint.MEASURED_ON: data})
        checkpoint.save(checkpoints, 4, state(4), {})
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.find_step(checkpoints, "best") == 2


def test_set_aside_moves_and_never_overwrites(run):
    for names in (["40"], ["40", "40.1"], ["40", "40.1", "40.2"]):
        with checkpoint.manager(run) as checkpoints:
            before = files(run / "checkpoints" / "40")
            place = checkpoint.set_aside(checkpoints, 40)
            assert checkpoint.steps(checkpoints) == list(checkpoints.all_steps()) == [20]
            assert checkpoints.latest_step() == 20
            assert sorted(path.name for path in (run / "damaged").iterdir()) == names
            assert place == str(run / "damaged" / names[-1]) and len(files(run / "damaged" / names[-1])) == len(before)
            checkpoint.save(checkpoints, 40, state(40), {"next_step": 40, "text": "é"})
        assert newest(run) == (40, [])


def test_split_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd@7").mkdir()
    for source, parts in {
        "runs/a@1000": ("runs/a", "1000"),
        "runs/a@best": ("runs/a", "best"),
        "runs/a": ("runs/a", ""),
        "runs/a@": ("runs/a@", ""),
        "@5": ("@5", ""),
        "me@host/a": ("me@host/a", ""),
        "me@host/a@20": ("me@host/a", "20"),
        "a@latest": ("a@latest", ""),
        "a@-1": ("a@-1", ""),
        "a@1e3": ("a@1e3", ""),
        "a@" + "9" * 5000: ("a@" + "9" * 5000, ""),
        "odd@7": ("odd@7", ""),
        "odd@7@8": ("odd@7", "8"),
        "gs://bucket/a@3": ("gs://bucket/a", "3"),
    }.items():
        assert checkpoint.split_source(source) == parts


@pytest.mark.parametrize("processes", [2, 3, 40])
def test_processes_share_the_files(run, monkeypatch, processes):
    """Each file is read by one process, which finds what is wrong with it."""
    folder = epath.Path(run / "checkpoints" / "40")
    there = files(run / "checkpoints" / "40")
    names = [path.relative_to(folder).as_posix() for path in there if path.name != checkpoint.SUMS]
    real, read = checksums._sum, []

    def counted(path):
        read.append(path.relative_to(folder).as_posix())
        return real(path)

    def found():
        read.clear()
        for index in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            yield checksums._differs(folder, "")

    monkeypatch.setattr(checksums, "_sum", counted)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert list(found()) == [None] * processes
    assert sorted(read) == sorted(names)
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert [text for text in found() if text is not None] == [f"/{name}: changed"]
        (folder / name).write_bytes(data)


def test_texts_of_all_processes_come_together(monkeypatch):
    texts = ["", "checkpoints/40: é", "x" * 1000]
    given = [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def allgather(mine):  # what jax gives to each process, the others holding `given`
        if mine.ndim == 0:
            return np.array([len(data) for data in given], np.int32)
        return np.stack([np.pad(data, (0, len(mine) - len(data))) for data in given])

    monkeypatch.setattr(jax, "process_count", lambda: len(texts))
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    for text in texts:
        assert checksums._gather(text) == texts


def test_one_process_calls_no_collective(run, monkeypatch):
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda *_: pytest.fail("a collective"))
    assert newest(run) == (40, [])
    with checkpoint.manager(run) as checkpoints:
        checkpoint.set_aside(checkpoints, 40)


KILLED = """
import sys
from tests.checkpoint.test_checkpoint import checkpoint, state
with checkpoint.manager(sys.argv[1], keep=3) as checkpoints:
    for step in range(1, 10**6):
        checkpoint.save(checkpoints, step, state(step), {"next_step": step, "text": "é"})
        print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_what_a_kill_leaves_is_a_verified_checkpoint(tmp_path, seed):
    """Wherever the kill falls, no checkpoint is without checksums or damaged, but one that was being deleted."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd()
    ) as child:
        assert child.stdout is not None
        for _ in range(3 + seed):
            child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(float(np.random.default_rng(seed).uniform(0, 0.1)))
        child.send_signal(signal.SIGKILL)
    step, said = newest(tmp_path)
    assert step is not None and said == []
    with checkpoint.manager(tmp_path) as checkpoints:
        assert all(checkpoint.damage(checkpoints, step) is None for step in checkpoint.steps(checkpoints)[-3:])
