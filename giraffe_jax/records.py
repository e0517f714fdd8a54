"""Rows, metrics and the progress line: everything the project writes down while it works.

A row is one JSON object on one line. A file of rows is append-only and can be read while it is written; whatever kills
the process, the file holds whole rows and at most one torn last line, which the next opening removes. Numbers that are
not finite become null, so every row is strict JSON for every reader. A line that is no row, because something else than
this module has changed the file, is named, and set aside by the next opening.

Only process 0 of a job writes. Imports nothing heavy: the command line reads rows without starting JAX.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_LINE = 1 << 24  # bytes of a row; a longer line is a bad one, and never in memory whole
MAX_NAMED = 10  # bad lines that are warned of one by one


def plain(value: Any, where: str = "row") -> Any:
    """The value as strict JSON data: scalars and arrays of any library unwrapped, NaN and infinities as None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy, jax and torch, scalars and arrays alike
        return plain(value.tolist(), where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(
        f"{where}: cannot write {type(value).__name__} as JSON; allowed: numbers, text, lists, mappings, None"
    )


def encode(row: Mapping[str, Any]) -> bytes:
    """One row as the bytes of its line, newline included."""
    return (json.dumps(plain(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def read_rows(path: str | os.PathLike[str], say: Callable[[str], Any] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, one at a time; a last line without its newline (a write that was killed) is left out.

    A whole line that is not a JSON object is a ValueError naming file and line; with `say` (warnings.warn, for one),
    that is told instead, and the reader goes on: for those that can do with fewer rows than were written.
    """
    with open(path, "rb") as file:
        for number, _, line in _lines(file):
            try:
                yield _row(line)
            except ValueError as error:
                if say is None:
                    raise ValueError(f"{path}, line {number}: {error}") from None
                say(f"{path}, line {number}: {error}; it is left out")


def _lines(file: Any) -> Iterator[tuple[int, int, bytes]]:
    """(number, bytes of it in the file, content) of every line that has its end; of a huge one, the beginning alone."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number, size, part = number + 1, len(line), line
        while not part.endswith(b"\n"):
            part = file.readline(MAX_LINE)
            if not part:
                return
            size += len(part)
        yield number, size, line


def _row(line: bytes) -> dict[str, Any]:
    """The row of a line; ValueError says what it is instead."""
    if len(line) > MAX_LINE:
        raise ValueError(f"more than {MAX_LINE:,} bytes")
    try:
        row = json.loads(line.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    except ValueError as error:  # of UTF-8 and of numbers too
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in it")


class Rows:
    """An append-only file of rows, opened for writing; each `append` is one write, so a kill cannot interleave rows.

    Opening creates the file and its directory, removes a torn last line, and moves lines that are not rows to the end
    of <name>.bad beside it, with a warning for each; not so where it is `shared`, which others have open and append to
    too. Use as a context manager or `close()`.
    """

    def __init__(self, path: str | os.PathLike[str], *, shared: bool = False):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):  # Path has made gs://x into gs:/x
            raise ValueError(f"{path}: rows are appended one by one, which only local files allow; give a local path")
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd: int | None = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._shared = shared
        if not shared:
            self._drop_torn_line(self._fd)
            self._rewrite(lambda row: True)

    @staticmethod
    def _drop_torn_line(fd: int) -> None:
        end = size = os.fstat(fd).st_size
        while end > 0:
            start = max(0, end - 65536)
            newline = os.pread(fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(fd, end)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; on a full disk the part that was written is taken back and OSError goes to the caller."""
        if self._fd is None:
            raise ValueError(f"{self.path}: closed")
        line = encode(row)
        if len(line) > MAX_LINE:
            raise ValueError(f"{self.path}: a row of {len(line):,} bytes; allowed: up to {MAX_LINE:,}")
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # else a row that another process is writing looks like a torn one
        try:
            self._write(self._fd, line)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _write(self, fd: int, line: bytes) -> None:
        before = os.fstat(fd).st_size
        if self._shared and before and os.pread(fd, 1, before - 1) != b"\n":
            line = b"\n" + line  # of a process that was killed in the middle of a row
        try:
            written = 0
            while written < len(line):
                written += os.write(fd, line[written:])
        except OSError as error:
            os.ftruncate(fd, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Return once all rows are on the disk itself (they survive a kill of the process without this)."""
        if self._fd is not None:
            os.fsync(self._fd)

    def truncate_after(self, step: int) -> int:
        """Drop the rows whose "step" is past `step`, all at once, and return how many: a resumed run redoes them.

        A row whose "step" is not a number is set aside like a line that is no row.
        """

        def before(row: Mapping[str, Any]) -> bool:
            at = row.get("step", -1)
            if isinstance(at, bool) or not isinstance(at, int | float):
                raise ValueError(f"expected a number as its step, got {str(at)[:40]!r}")
            return at <= step

        return self._rewrite(before)

    def _rewrite(self, keep: Callable[[Mapping[str, Any]], bool]) -> int:
        """Drop the rows that `keep` refuses and set aside the lines that it, or JSON, cannot read; how many it refused.

        A kill leaves the old file or the new one; what was set aside just before it may be set aside twice, never lost.
        """
        cut: list[tuple[int, int]] = []  # where and how long
        bad: list[tuple[int, int, int, str]] = []  # which line, where and how long, why
        refused = at = 0
        with open(self.path, "rb") as file:
            for number, size, line in _lines(file):
                try:
                    if not keep(_row(line)):
                        refused += 1
                        cut.append((at, size))
                except ValueError as error:
                    bad.append((number, at, size, str(error)))
                    cut.append((at, size))
                at += size
            if not cut:
                return 0
            aside = self.path.with_name(self.path.name + ".bad")
            if bad:
                with open(aside, "ab") as rest:
                    for _, begin, size, _ in bad:
                        file.seek(begin)
                        while part := file.read(min(size, MAX_LINE)):
                            size -= rest.write(part)
                    rest.flush()
                    os.fsync(rest.fileno())
            kept, begin = [], 0
            for end, size in [*cut, (at, 0)]:
                file.seek(begin)
                kept.append(file.read(end - begin))
                begin = end + size
        self.close()
        write_atomically(self.path, b"".join(kept))
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        for number, _, _, why in bad[:MAX_NAMED]:
            warnings.warn(f"{self.path}, line {number}: {why}; it is now in {aside}", stacklevel=3)
        if len(bad) > MAX_NAMED:
            more = len(bad) - MAX_NAMED
            warnings.warn(f"{self.path}: {more} more bad lines are now in {aside}", stacklevel=3)
        return refused

    def close(self) -> None:
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds a file's lock while inside, and yields whether it was had: always, with `wait`.

    The file is made where it is missing. A lock goes with its process, however that ends. Several may hold a `shared`
    one, while nobody holds another.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            had = True
        except BlockingIOError:
            had = False
        yield had
    finally:
        os.close(fd)


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file so that a reader, or a kill, sees either the old content or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """A time as people say it: 8s, 3m20s, 2h05m, 1d04h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


class Progress:
    """One line that says how far the work is: rewritten in place on a terminal, else one every `every` seconds.

    Work that takes less than `after` seconds says nothing.
    """

    def __init__(
        self, total: int | None, *, start: int = 0, every: float = 10.0, after: float = 0.0, file: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.total, self.start, self.every, self.after = total, start, every, after
        self.file = sys.stderr if file is None else file
        self.clock = clock
        # With stdout in a pipe (`| tee log`) its lines would land in the middle of one that is rewritten.
        self.tty = self.file.isatty() and (self.file is not sys.stderr or sys.stdout.isatty())
        self._began, self._shown, self._width, self._open = clock(), -math.inf, 0, False

    def update(self, done: int, text: str, *, force: bool = False) -> None:
        """Show `done` of `total` and the text, with the time left measured from this start's own pace."""
        now = self.clock()
        pause = 0.1 if self.tty else self.every
        if now - self._began < self.after or (not force and now - self._shown < pause and done != self.total):
            return
        self._shown = now
        left = ""
        if self.total is not None and done > self.start:
            pace = (now - self._began) / (done - self.start)
            left = (
                f"  {duration(pace * (self.total - done))} left"
                if done < self.total
                else f"  {duration(now - self._began)}"
            )
        head = f"{done}/{self.total}" if self.total is not None else str(done)
        self._print(f"{head}  {text}{left}")

    def _print(self, line: str) -> None:
        if self.tty:
            self.file.write("\r" + line.ljust(self._width))
            self._width, self._open = len(line), True
        else:
            self.file.write(line + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """Print a line of its own, above what shows the progress."""
        if self._open:
            text = text.ljust(self._width)
            self.file.write("\r")
        self._width, self._open = 0, False
        self.file.write(text + "\n")
        self.file.flush()

    def close(self) -> None:
        """End the line, so that what is printed next starts on its own."""
        if self._open:
            self.file.write("\n")
            self.file.flush()
            self._open = False


class TrainLog:
    """The log of one training run: metrics.jsonl, TensorBoard event files and the progress line, from process 0 only.

    `start` is the step training resumes after: rows and events of later steps, which will be made again, are dropped.
    `process` is the index of this process in the job; every other one than 0 writes and prints nothing.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, total_steps: int | None = None, start: int = 0, process: int = 0,
        tensorboard: bool = True, every: float = 10.0, file: Any = None,
    ):  # fmt: skip
        self.rows = self.board = self.progress = None
        if process != 0:
            return
        self.rows = Rows(os.path.join(workdir, "metrics.jsonl"))
        self.rows.truncate_after(start)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(  # the suffix keeps two starts within one second apart
                str(Path(workdir) / "tensorboard"),
                purge_step=start + 1 if start else None,
                filename_suffix=f".{start}",
            )
        self.progress = Progress(total_steps, start=start, every=every, file=file)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a step: numbers and nested mappings of numbers; text is kept in the rows only."""
        if self.rows is None:
            return
        row = {"step": int(step), **plain(metrics, "metrics")}
        self.rows.append(row)
        if self.board is not None:
            for name, value in _flat(row):
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, int(step))
        if self.progress is not None and "loss" in row:
            self.progress.update(int(step), _line(row))

    def say(self, text: str) -> None:
        """Print lines that are no metrics: what the run is, and what happens to it."""
        if self.progress is not None:
            self.progress.say(text)

    def close(self) -> None:
        for part in (self.progress, self.board, self.rows):
            if part is not None:
                part.close()
        self.rows = self.board = self.progress = None

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _line(row: Mapping[str, Any]) -> str:
    loss = row["loss"]
    parts = [f"loss {loss:.4f}" if loss is not None else "loss not finite"]
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)


def slug(name: str, seed: int | None = None) -> str:
    """Returns a directory's name for a variant; different names give different ones."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "variant"
    exact = plain if plain == name else f"{plain}-{digest([name])[:6]}"
    return exact if seed is None else f"{exact}-seed{seed}"


def digest(value: Any) -> str:
    """Returns 16 hex digits of the hash of a value that JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
