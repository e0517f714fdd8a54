"""Writing files: a directory that appears complete or not at all, weights in safetensors, JSON."""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.model import ModelConfig

_SHARD_BYTES = 5_000_000_000


def check_new(directory: str | Path) -> None:
    """Raises ConfigError if `new_directory` would: the directory has files in it, or cannot be made."""
    path = Path(os.path.realpath(directory))
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{directory}: exists already; nothing is overwritten. Give a new directory.")
    ancestor = next(p for p in path.parents if os.path.lexists(p))
    if not ancestor.is_dir():
        raise ConfigError(f"{directory}: {ancestor} is a file, so no directory can be made in it.")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory}: {ancestor} cannot be written in.")


def check_new_file(path: str | Path) -> None:
    """Raises ConfigError if the path exists, or no file can be made there."""
    path = Path(path)
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already; nothing is overwritten. Give a new file.")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {folder} {'cannot be written in' if folder.is_dir() else 'is not a directory'}.")


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yields a new folder to fill, which is renamed to `directory` at the end; after an error nothing is left.

    The folder is beside `directory`, with a name that no other process uses; leftovers of killed ones are not touched.

    Raises:
      ConfigError: `directory` is not empty, before or at the end, or cannot be made.
    """
    check_new(directory)
    path = Path(os.path.realpath(directory))
    new_parents = [p for p in path.parents if not p.exists()]  # innermost first
    name = f".{path.name}.writing-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in (path.with_name(name + f"-{i}" * (i > 0)) for i in itertools.count()):
            with contextlib.suppress(FileExistsError):
                part.mkdir()
                break
    except OSError as e:
        raise ConfigError(f"{directory}: {e.filename} cannot be made: {e.strerror}.") from e
    try:
        yield part
        try:
            part.rename(path)  # fails if the target is a directory that is not empty
        except OSError as e:
            raise ConfigError(
                f"{directory}: was made meanwhile by another process; nothing is overwritten ({e.strerror})."
            ) from e
    except BaseException:
        _remove(part)
        with contextlib.suppress(OSError):  # not empty: others are writing there too
            for parent in new_parents:
                parent.rmdir()
        raise


def _remove(folder: Path) -> None:
    """Removes a folder, trying for some seconds: after a failed save, threads may still be writing into it."""
    times_gone = 0
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        times_gone = 0 if folder.exists() else times_gone + 1
        if times_gone == 2:
            return
        time.sleep(0.1)


def _write_tensors(directory: Path, flat: Mapping[str, Any], config: ModelConfig, dtype: str, shard_bytes: int) -> None:
    """Writes the weights in files of at most `shard_bytes`, holding one file's tensors in memory at a time."""
    import jax.numpy as jnp

    size, kind = names.sizes(config), jnp.dtype(dtype)
    rows = names.names(config)
    plan = [(n, i) for n in rows if not n.stacked for i in [0]]
    plan += [(n, i) for i in range(config.num_layers) for n in rows if n.stacked]
    shards: list[list[tuple[names.Name, int]]] = [[]]
    used = 0
    for row, i in plan:
        count = int(np.prod(names.file_shape(row.layout, size))) * kind.itemsize
        if shards[-1] and used + count > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((row, i))
        used += count
    where, total = {}, 0
    for k, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for row, i in shard:
            parameter = flat[row.path][i] if row.stacked else flat[row.path]
            array = names.to_file(np.asarray(parameter), row.layout, size).astype(kind)
            tensors[row.hf.format(i=i)] = np.ascontiguousarray(array)
            total += array.nbytes
        write_safetensors(directory / file, tensors)
        where |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors, which must be contiguous, as one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()  # with the permissions of the umask: save_file makes files that only their owner can read
    permissions = path.stat().st_mode
    try:
        save_file(dict(tensors), str(path), metadata={"format": "pt"})
    except SafetensorError as e:  # whose text does not name the file
        raise OSError(f"{path}: {e}") from e
    path.chmod(permissions)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    file.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
