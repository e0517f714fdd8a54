"""Atomic writes, and file locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

RACY_NS = 2_000_000_000  # coarsest resolution of file times (FAT): two writes within it can have the same mtime


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file, and yields whether it was acquired, which with `wait` is always True.

    The file is created if it is missing. The lock is released when the process ends, however it ends. Several processes
    may hold a `shared` lock at once, but not together with one that is not shared.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            acquired = True
        except BlockingIOError:
            acquired = False
        yield acquired
    finally:
        os.close(fd)


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file so that readers see either the old content or the new, even if the process is killed."""
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
