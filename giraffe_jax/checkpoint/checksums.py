"""Checksums of a checkpoint's files, written with it and compared before it is trusted."""

import asyncio
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from giraffe_jax.checkpoint.folders import FOLDER, Checkpoints
from giraffe_jax.config import ConfigError
from giraffe_jax.records.files import RACY_NS
from giraffe_jax.sharding import paths

SUMS = "checksums.json"  # in the step's folder, so that it is moved and deleted with it
READERS = 4  # files that a process hashes at once


class _Summed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a checkpoint: gets its checksums before the rename that commits it."""

    async def finalize(self) -> None:
        store, folder = self._checkpoint_metadata_store, self.get()
        if store is None:  # the folder of an item within a step
            return await super().finalize()
        # What orbax does, plus the checksums between its last write and its rename, where orbax has no hook.
        file = ocp.path.atomicity.checkpoint_metadata.step_metadata_file_path(folder)
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(store.update, file_path=file, commit_timestamp_nsecs=time.time_ns())
        await asyncio.to_thread(store.wait_until_finished)
        (folder / ocp.path.atomicity.COMMIT_SUCCESS_FILE).write_text(f"committed as {self.get_final()}")
        await asyncio.to_thread(_write_sums, folder)
        await asyncio.to_thread(folder.rename, self.get_final())


def _verify(checkpoints: Checkpoints, step: int, under: str = "") -> None:
    if step in checkpoints.verified:
        return
    fault = _damage(checkpoints, step, under) if under else damage(checkpoints, step)
    if fault is not None:
        raise ConfigError(f"checkpoint {step} in {checkpoints.directory} is damaged: {fault}.")


# Checksums


def damage(checkpoints: Checkpoints, step: int) -> str | None:
    """Returns what is wrong with a step's checkpoint, "checkpoints/40/state/d/abc: truncated from 812 to 400 bytes".

    None if all files match their checksums; without checksums, if orbax can read the metadata. Each process reads its
    share of the files.
    """
    checkpoints.verified.discard(step)
    fault = _damage(checkpoints, step)
    if fault is None:
        checkpoints.verified.add(step)
    return fault


def _damage(checkpoints: Checkpoints, step: int, under: str = "") -> str | None:
    """Returns what is wrong with the files of a step whose names begin with `under`, the same in every process."""
    folder = checkpoints.directory / str(step)
    try:
        has_sums = (folder / SUMS).exists()
        fault = _differs(folder, under) if has_sums else _looks_wrong(checkpoints, step)
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    first = next((text for text in _gather(fault or "") if text), None)
    return None if first is None else f"{FOLDER}/{step}{'' if first.startswith('/') else ': '}{first}"


def _looks_wrong(checkpoints: Checkpoints, step: int) -> str | None:
    """Returns what is wrong with a step that has no checksums, without reading its arrays."""
    folder = checkpoints.directory / str(step)
    if not (folder / "state").is_dir():
        return "not a checkpoint" if folder.exists() else "missing"
    try:
        paths(checkpoints.item_metadata(step)["state"].tree)
    except Exception as error:  # orbax does not say which kinds it raises
        return f"/state: changed ({error!r})"
    try:
        json.loads((folder / "about" / "metadata").read_text())
    except FileNotFoundError:
        return "/about/metadata: missing"
    except (ValueError, RecursionError) as error:
        return f"/about/metadata: changed ({error})"
    return None


def _differs(folder: epath.Path, under: str) -> str | None:
    """Returns the first mismatch with the checksums, "/state/d/abc: changed", in this process's share of the files."""
    try:
        raw = (folder / SUMS).read_bytes()
        files = json.loads(raw)["files"]
        whole = raw == _encode(files)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        return f"/{SUMS}: changed"
    own_files = sorted(name for name in files if name.startswith(under))[jax.process_index() :: jax.process_count()]

    def check(name: str, compare: Callable[[epath.Path, int, str], str | None]) -> str | None:
        try:
            mismatch = compare(folder / name, *files[name])
        except (FileNotFoundError, NotADirectoryError):
            mismatch = "missing"
        except OSError as error:
            mismatch = f"cannot be read ({error.strerror or error})"
        return None if mismatch is None else f"/{name}: {mismatch}"

    with ThreadPoolExecutor(READERS) as readers:
        for compare in (_wrong_size, _wrong_sum):  # finds missing files before any file is read
            first_mismatch = next(filter(None, readers.map(check, own_files, [compare] * len(own_files))), None)
            if first_mismatch is not None:
                readers.shutdown(cancel_futures=True)
                return first_mismatch
    return None


def _wrong_size(path: epath.Path, size: int, _: str) -> str | None:
    actual = path.stat().length
    return None if actual == size else f"{'truncated' if actual < size else 'grown'} from {size} to {actual} bytes"


def _wrong_sum(path: epath.Path, size: int, sha256: str) -> str | None:
    return None if _known_sum(path) == [size, sha256] else "changed"


def _known_sum(path: epath.Path) -> list:
    """Returns the checksum of a file: it is read once per process, unless its times, size or inode change."""
    status, now = os.stat(path), time.time_ns()
    if max(status.st_mtime_ns, status.st_ctime_ns) > now - RACY_NS:
        return _sum(path)
    return _sum_of(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1 << 14)
def _sum_of(path: str, *state: int) -> list:
    return _sum(epath.Path(path))


def _write_sums(folder: epath.Path) -> None:
    """Writes the checksums of all files of a checkpoint that is not committed yet."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(READERS) as readers:
        sums = readers.map(_sum, files)
        checksums = {file.relative_to(folder).as_posix(): value for file, value in zip(files, sums, strict=True)}
    (folder / SUMS).write_bytes(_encode(checksums))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _sum(path: epath.Path) -> list:
    """Returns [bytes, SHA-256 in hexadecimal] of a file."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            size += len(part)
            digest.update(part)  # type: ignore[arg-type]
    return [size, digest.hexdigest()]


def _encode(files: Any) -> bytes:
    """Returns checksums.json: {"files": {name: [bytes, SHA-256]}, "sha256": that of the value of "files"}."""
    checksum = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": checksum}, sort_keys=True).encode()


def _gather(text: str) -> list[str]:
    """Returns the texts of all processes, in their order; with one process nothing is exchanged."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
