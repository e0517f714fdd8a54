"""Rows survive what kills the process that writes them, and say nothing that is not strict JSON."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax import records
from giraffe_jax.records import rows as record_rows


def lines(path):
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in path.read_text().splitlines()]


def test_rows_come_back(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    with records.Rows(path) as rows:
        rows.append({"step": 1, "loss": np.float32(1.5), "bins": np.arange(3), "ok": True, "text": "é\n"})
        rows.append({"step": 2, "nested": {"nan": float("nan"), "inf": -np.inf}, "list": [np.nan, 2]})
    expected = [
        {"step": 1, "loss": 1.5, "bins": [0, 1, 2], "ok": True, "text": "é\n"},
        {"step": 2, "nested": {"nan": None, "inf": None}, "list": [None, 2]},
    ]
    assert lines(path) == expected == list(records.read_rows(path))


def test_floats_come_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32) * np.float32(1e-7)
    with records.Rows(tmp_path / "r") as rows:
        for value in values:
            rows.append({"v": value})
    read = np.array([row["v"] for row in records.read_rows(tmp_path / "r")], np.float32)
    assert (read.view(np.int32) == values.view(np.int32)).all()


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step":3}', b"x" * 200_000])
def test_a_torn_last_line_is_left_out_and_then_removed(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n' + torn)
    assert [row["step"] for row in records.read_rows(path)] == [1, 2]
    with records.Rows(path) as rows:
        rows.append({"step": 3})
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n{"step":3}\n'


def test_a_file_with_only_a_torn_line_becomes_empty(tmp_path):
    (tmp_path / "r").write_bytes(b'{"a"')
    records.Rows(tmp_path / "r").close()
    assert (tmp_path / "r").read_bytes() == b""


def test_kill_leaves_whole_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys; from giraffe_jax.records import Rows\nrows = Rows(sys.argv[1])\n"
        "for i in range(10**9):\n rows.append({'i': i, 'pad': 'x' * 1000})\n if i == 50: print('go', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=os.environ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        child.send_signal(signal.SIGKILL)
    read = [row["i"] for row in records.read_rows(path)]
    assert len(read) > 50 and read == list(range(len(read)))


def test_bad_lines_are_named(tmp_path):
    (tmp_path / "r").write_text('{"a":1}\nnope\n')
    with pytest.raises(ValueError, match=r"r, line 2: not JSON"):
        list(records.read_rows(tmp_path / "r"))
    (tmp_path / "r").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1: expected a JSON object, got list"):
        list(records.read_rows(tmp_path / "r"))
    with pytest.raises(ValueError, match=r"row\.a\.b: cannot write object as JSON"):
        records.encode({"a": {"b": object()}})


BAD = {
    "not JSON": b"nope",
    "got list": b"[1]",
    "got int": b"7",
    "utf-8": b'{"a": "\xff\xfe"}',
    "NaN is not a number": b'{"step": 1, "loss": NaN}',
    "-Infinity is not a number": b'{"loss": -Infinity}',
    "nested too deeply": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "integer string conversion": b'{"step": ' + b"9" * 6_000 + b"}",
    "column 1 ": b"\0" * 4096,
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_named_and_set_aside(tmp_path, what):
    path, bad = tmp_path / "rows.jsonl", BAD[what]
    path.write_bytes(b'{"step":1}\n' + bad + b'\n{"step": 2, "as it is": "\\ud800"}\n' + bad + b"\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*{what}"):
        list(records.read_rows(path))
    told: list[str] = []
    assert [row["step"] for row in records.read_rows(path, told.append)] == [1, 2]
    assert [f"line {i}: " in text and what in text for i, text in zip((2, 4), told, strict=True)] == [True, True]
    (tmp_path / "rows.jsonl.bad").write_bytes(b"of before\n")
    with pytest.warns(UserWarning) as warned, records.Rows(path) as rows:
        rows.append({"step": 3})
    said = [str(w.message) for w in warned]
    assert [f"rows.jsonl, line {i}: " in text and what in text for i, text in zip((2, 4), said, strict=True)] == [
        True
    ] * 2
    assert all(text.endswith("rows.jsonl.bad") for text in said)
    assert path.read_bytes() == b'{"step":1}\n{"step": 2, "as it is": "\\ud800"}\n{"step":3}\n'
    assert (tmp_path / "rows.jsonl.bad").read_bytes() == b"of before\n" + (bad + b"\n") * 2
    records.Rows(path).close()  # and no more warnings


def test_a_huge_line_is_a_bad_one_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(record_rows, "MAX_LINE", 100)
    path, huge = tmp_path / "r", b'{"pad":"' + b"x" * 1000 + b'"}\n'
    path.write_bytes(b'{"step":1}\n' + huge + b'{"step":2}\n')
    with pytest.warns(UserWarning, match=r"r, line 2: more than 100 bytes; it is now in .*r\.bad"):
        rows = records.Rows(path)
    with rows, pytest.raises(ValueError, match="a row of 210 bytes; allowed: up to 100"):
        rows.append({"pad": "x" * 199})
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n' and (tmp_path / "r.bad").read_bytes() == huge
    path.write_bytes(b'{"step":1}\n' + huge[:-1])  # its end is not there: torn
    assert list(records.read_rows(path)) == [{"step": 1}]


def test_many_bad_lines_are_counted(tmp_path):
    (tmp_path / "r").write_bytes(b"?\n" * 1000)
    with pytest.warns(UserWarning) as warned:
        records.Rows(tmp_path / "r").close()
    assert len(warned) == 11 and "990 more bad lines" in str(warned[-1].message)
    assert (tmp_path / "r").read_bytes() == b"" and (tmp_path / "r.bad").read_bytes() == b"?\n" * 1000


def test_setting_aside_loses_nothing_where_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "r"
    path.write_bytes(b'{"a":1}\n?\n')

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.Rows(path)
    monkeypatch.undo()
    assert path.read_bytes() == b'{"a":1}\n?\n'


def test_truncate_after(tmp_path):
    with records.Rows(tmp_path / "r") as rows:
        for step in range(1, 8):
            rows.append({"step": step})
        rows.append({"note": "no step"})
        assert rows.truncate_after(4) == 3
        assert rows.truncate_after(4) == 0
        rows.append({"step": 5, "again": True})
    assert [row.get("step") for row in records.read_rows(tmp_path / "r")] == [1, 2, 3, 4, None, 5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("step", ["12", None, True, [3], {}])
def test_truncate_after_sets_aside_what_has_no_number_as_its_step(tmp_path, step):
    with records.Rows(tmp_path / "r") as rows:
        for row in ({"step": 1}, {"step": step}, {"step": 2.0}, {"step": 3}):
            rows.append(row)
        with pytest.warns(UserWarning, match="r, line 2: expected a number as its step, got "):
            assert rows.truncate_after(2) == 1
        rows.append({"step": 4})
    assert [row["step"] for row in records.read_rows(tmp_path / "r")] == [1, 2.0, 4]
    assert lines(tmp_path / "r.bad") == [{"step": step}]


def test_train_log_goes_on_past_a_bad_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step":1,"loss":2.0}\n{"step":2,"lo#s":1.0\n{"step":3,"loss":0.5}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 2: not JSON"):
        log = records.TrainLog(tmp_path, start=2, tensorboard=False, file=io.StringIO())
    with log:
        log.write(3, {"loss": 0.25})
    rows = [(row["step"], row["loss"]) for row in records.read_rows(tmp_path / "metrics.jsonl")]
    assert rows == [(1, 2.0), (3, 0.25)]


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    rows = records.Rows(tmp_path / "r")
    rows.append({"a": 1})
    real = os.write
    calls = []

    def short(fd, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(fd, data[:3])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space"):
        rows.append({"b": 2})
    monkeypatch.undo()
    rows.append({"c": 3})
    rows.close()
    assert lines(tmp_path / "r") == [{"a": 1}, {"c": 3}]


def test_remote_paths_are_refused_and_not_made_into_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/run/rows.jsonl: .* local"):
        records.Rows("gs://bucket/run/rows.jsonl")
    with pytest.raises(ValueError, match="local"):
        records.TrainLog(Path("gs://bucket/run"))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_the_old_file_goes_on_reading_the_old_one(tmp_path):
    path = tmp_path / "f"
    records.write_atomically(path, "old")
    with open(path) as reader:
        records.write_atomically(path, "new, and longer")
        assert reader.read() == "old" and path.read_text() == "new, and longer"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    records.write_atomically(tmp_path / "f", "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write_atomically(tmp_path / "f", "new, and longer")
    assert (tmp_path / "f").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_train_log_resumes_where_training_does(tmp_path):
    out = io.StringIO()
    with records.TrainLog(tmp_path, total_steps=4, file=out, every=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 3.0 / step, "tokens_per_second": 1234.0, "eval": {"nll": 2.0}})
    with records.TrainLog(tmp_path, total_steps=4, start=2, file=out, every=0) as log:
        for step in (3, 4):
            log.write(step, {"loss": 10.0 + step})
    rows = list(records.read_rows(tmp_path / "metrics.jsonl"))
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 3.0), (2, 1.5), (3, 13.0), (4, 14.0)]
    shown = out.getvalue().splitlines()
    assert shown[0] == "1/4  loss 3.0000  1,234 tokens/s" and shown[1].endswith("left")
    assert shown[-1].startswith("4/4  loss 14.0000")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_other_processes_write_nothing(tmp_path):
    with records.TrainLog(tmp_path / "w", process=3) as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "w").exists()


def test_progress_time_left():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = [0.0]
    plain_out, terminal = io.StringIO(), Terminal()
    for out in (plain_out, terminal):
        now[0] = 0.0
        progress = records.Progress(110, start=10, every=10.0, file=out, clock=lambda: now[0])
        for step in range(11, 111):
            now[0] += 1.0
            progress.update(step, "x")
        progress.close()
    assert plain_out.getvalue().splitlines()[:2] == ["11/110  x  1m39s left", "21/110  x  1m29s left"]
    assert plain_out.getvalue().splitlines()[-1] == "110/110  x  1m40s"
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r") == 100


def test_a_compilation_does_not_count_in_the_pace():
    now, out = [0.0], io.StringIO()
    progress = records.Progress(70, start=10, every=0.0, file=out, clock=lambda: now[0], compiles=True)
    for step, seconds in ((11, 90.0), (12, 2.0), (13, 4.0), (70, 100.0)):
        now[0] += seconds
        progress.update(step, "x")
    assert out.getvalue().splitlines() == [
        "11/70  x",
        "12/70  x  1m56s left",
        "13/70  x  2m51s left",
        "70/70  x  3m16s",
    ]


@pytest.mark.parametrize("stdout", ["a pipe", "a terminal"])
def test_progress_is_rewritten_in_place_only_where_nothing_is_piped(monkeypatch, stdout):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal() if stdout == "a terminal" else io.StringIO())
    progress = records.Progress(3, every=0.0)
    for done in (1, 2, 3):
        progress.update(done, "x", force=True)
    progress.close()
    shown = sys.stderr.getvalue()
    assert shown.count("\r") == (3 if stdout == "a terminal" else 0)
    assert [line.split()[0] for line in re.split(r"[\r\n]+", shown) if line] == ["1/3", "2/3", "3/3"]


@pytest.mark.parametrize(
    "seconds, text", [(7.6, "8s"), (200, "3m20s"), (7500, "2h05m"), (100_800, "1d04h"), (float("inf"), "?")]
)
def test_duration(seconds, text):
    assert records.duration(seconds) == text


def test_imports_no_jax():
    code = (
        "import sys, giraffe_jax.records; assert not {'jax', 'flax', 'tensorboardX', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_torn_line_of_another_process_does_not_take_the_next_row_with_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    with records.Rows(path, shared=True) as mine, records.Rows(path, shared=True) as other:
        mine.append({"a": 1})
        with path.open("ab") as killed:
            killed.write(b'{"torn": ')
        other.append({"b": 2})
        mine.append({"c": 3})
    with pytest.warns(UserWarning, match="line 2"):
        assert list(records.read_rows(path, warnings.warn)) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_a_row_that_is_being_written_is_no_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    with records.Rows(path, shared=True) as mine, path.open("ab", buffering=0) as other:
        mine.append({"a": 1})
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"in": ')
        thread = threading.Thread(target=mine.append, args=({"b": 2},))
        thread.start()
        thread.join(0.2)  # time to do it wrong
        other.write(b'"parts"}\n')
        fcntl.flock(other, fcntl.LOCK_UN)
        thread.join()
    assert list(records.read_rows(path)) == [{"a": 1}, {"in": "parts"}, {"b": 2}]


def test_a_lock_is_had_by_one_or_shared_by_several(tmp_path):
    path = tmp_path / "new" / "lock"
    with records.locked(path) as first, records.locked(path, wait=False) as second:
        assert first and not second
    with records.locked(path, shared=True), records.locked(path, shared=True, wait=False) as other:
        assert other
        with records.locked(path, wait=False) as alone:
            assert not alone
    with records.locked(path, wait=False) as alone:
        assert alone


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        records.write_atomically(tmp_path / "atomic", "x")
        records.Rows(tmp_path / "rows").close()
        with records.locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(
        ("atomic", "rows", "lock"), 0o666 & ~umask
    )
