"""Rows, metrics and the progress line: everything the project writes down while it works.

A row is one JSON object on one line. A file of rows is append-only and can be read while it is written; whatever kills
the process, the file holds whole rows and at most one torn last line, which the next opening removes. Numbers that are
not finite become null, so every row is strict JSON for every reader. A line that is no row, because something else than
this module has changed the file, is named, and set aside by the next opening.

Only process 0 of a job writes. Imports nothing heavy: the command line reads rows without starting JAX.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from giraffe_jax.records.files import write_atomically

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


def slug(name: str, seed: int | None = None) -> str:
    """Returns a directory's name for a variant; different names give different ones."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "variant"
    exact = plain if plain == name else f"{plain}-{digest([name])[:6]}"
    return exact if seed is None else f"{exact}-seed{seed}"


def digest(value: Any) -> str:
    """Returns 16 hex digits of the hash of a value that JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
