"""Files of rows (JSON lines), for results and metrics.

A row is one JSON object on one line. A file of rows is append-only and can be read while it is written. However the
process is killed, the file has whole rows and at most one incomplete last line, which the next opening removes. Numbers
that are not finite become null, so every row is strict JSON. A line that is not a row, because something else than this
module has changed the file, is reported, and moved to another file by the next opening.

Only process 0 of a job writes. Imports nothing heavy: the command line reads rows without importing JAX.
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

MAX_LINE = 1 << 24  # most bytes of a row; a longer line is bad, and is never read into memory as a whole
MAX_NAMED = 10  # bad lines that get a warning each


def plain(value: Any, where: str = "row") -> Any:
    """Returns the value as strict JSON data: scalars and arrays of any library as numbers and lists, NaN and infinities
    as None. Raises ValueError, naming `where`, for other types."""
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
    """Returns a row as the bytes of its line, newline included."""
    return (json.dumps(plain(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def read_rows(path: str | os.PathLike[str], say: Callable[[str], Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file; a last line without its newline (from a process killed while writing) is left out.

    Raises ValueError, naming file and line, for a complete line that is not a JSON object. With `say` (such as
    warnings.warn) the line is reported through it instead, and left out.
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
    """Yields (number from 1, size in bytes, content) of every line that ends in a newline; the content of a line longer
    than MAX_LINE is only its beginning."""
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
    """Returns the row of a line. Raises ValueError, with the reason, if it is not one."""
    if len(line) > MAX_LINE:
        raise ValueError(f"more than {MAX_LINE:,} bytes")
    try:
        row = json.loads(line.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    except ValueError as error:  # also from decode and from _no_constant
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


class Rows:
    """An append-only file of rows, opened for writing; each `append` is one write, so rows are never interleaved.

    Opening creates the file and its directory, removes an incomplete last line, and moves lines that are not rows to
    the end of <name>.bad beside it, with a warning for each. A `shared` file, to which other processes append too, is
    left as it is. Use it as a context manager, or call `close()`.
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
        """Writes one row. On a full disk the part that was written is removed, and OSError raised.

        Raises ValueError for a row of more than MAX_LINE bytes, values that are not JSON, or after `close`.
        """
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
            line = b"\n" + line  # after the incomplete row of a killed process
        try:
            written = 0
            while written < len(line):
                written += os.write(fd, line[written:])
        except OSError as error:
            os.ftruncate(fd, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Waits until all rows are on the disk, in case the machine crashes; a killed process loses none anyway."""
        if self._fd is not None:
            os.fsync(self._fd)

    def truncate_after(self, step: int) -> int:
        """Removes the rows whose "step" is greater than `step`, atomically, and returns how many: a resumed run makes
        them again.

        A row whose "step" is not a number is moved to <name>.bad, like a line that is not a row.
        """

        def before(row: Mapping[str, Any]) -> bool:
            at = row.get("step", -1)
            if isinstance(at, bool) or not isinstance(at, int | float):
                raise ValueError(f"expected a number as its step, got {str(at)[:40]!r}")
            return at <= step

        return self._rewrite(before)

    def _rewrite(self, keep: Callable[[Mapping[str, Any]], bool]) -> int:
        """Removes the rows for which `keep` is False, moves lines for which it, or JSON, raises ValueError to the .bad
        file, and returns how many rows were removed.

        A killed process leaves the old file or the new one; a bad line may be in the .bad file twice, but is never
        lost.
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
            bad_path = self.path.with_name(self.path.name + ".bad")
            if bad:
                with open(bad_path, "ab") as bad_file:
                    for _, begin, size, _ in bad:
                        file.seek(begin)
                        while part := file.read(min(size, MAX_LINE)):
                            size -= bad_file.write(part)
                    bad_file.flush()
                    os.fsync(bad_file.fileno())
            kept, begin = [], 0
            for end, size in [*cut, (at, 0)]:
                file.seek(begin)
                kept.append(file.read(end - begin))
                begin = end + size
        self.close()
        write_atomically(self.path, b"".join(kept))
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        for number, _, _, why in bad[:MAX_NAMED]:
            warnings.warn(f"{self.path}, line {number}: {why}; it is now in {bad_path}", stacklevel=3)
        if len(bad) > MAX_NAMED:
            more = len(bad) - MAX_NAMED
            warnings.warn(f"{self.path}: {more} more bad lines are now in {bad_path}", stacklevel=3)
        return refused

    def close(self) -> None:
        """Closes the file, once all rows are on the disk."""
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def slug(name: str, seed: int | None = None) -> str:
    """Returns a name for the directory of a variant; different names give different directories."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "variant"
    exact = plain if plain == name else f"{plain}-{digest([name])[:6]}"
    return exact if seed is None else f"{exact}-seed{seed}"


def digest(value: Any) -> str:
    """Returns 16 hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
