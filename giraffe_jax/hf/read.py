"""Reads safetensors one tensor at a time, and assembles the stacked parameters from such tensors or a GGUF file's.

Errors are found before a large array is made: the header is checked against the file's size, then every name and shape.
Each parameter is then filled layer by layer, and a device's shard of it is freed on the host once it is on the device:
besides the model, host memory holds one parameter's shards and one layer's tensor.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.hf import names

_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format


class Tensor(NamedTuple):
    """A tensor in a file: its shape is known, its numbers are read by `read`."""

    shape: tuple[int, ...]
    file: Path
    read: Callable[[], np.ndarray]


def safetensors_directory(directory: Path) -> dict[str, Tensor]:
    """Returns the tensors of a directory's model.safetensors, or of the shards that its index names.

    Raises:
      ConfigError: no safetensors (pickled weights are never loaded), a missing shard, a truncated or corrupted file, an
        index that does not describe its shards.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return safetensors_file(single)
    if index.is_file():
        return _sharded(index)
    files = sorted(p.name for p in directory.iterdir())
    pickled = [n for n in files if n.endswith((".bin", ".pt", ".pth", ".ckpt")) and not n.startswith("training_args")]
    if pickled:
        raise ConfigError(
            f"{directory}: weights are in {pickled[0]}, a pickle: loading one can run any code it contains, so it is"
            " refused. Convert it to safetensors where you trust it (transformers: save_pretrained)."
        )
    raise ConfigError(
        f"{directory}: no model.safetensors or model.safetensors.index.json; it holds"
        f" {', '.join(files[:20]) or 'nothing'}."
    )


def _sharded(index: Path) -> dict[str, Tensor]:
    from giraffe_jax.tokenizer import read_json

    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
        raise ConfigError(f"{index}: expected 'weight_map', from tensor names to file names.")
    shards = {}
    for name in sorted(set(where.values())):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise ConfigError(f"{index}: names the shard {name!r}, which is not in {index.parent}.")
        shards[name] = safetensors_file(file)
    shard_of = {tensor: name for name, shard in shards.items() for tensor in shard}
    wrong = [t for t in sorted(where.keys() | shard_of.keys()) if where.get(t) != shard_of.get(t)]
    if wrong:
        t = wrong[0]
        raise ConfigError(f"{index}: says {t} is in {where.get(t, 'no shard')}, it is in {shard_of.get(t, 'none')}.")
    return {t: shards[name][t] for t, name in where.items()}


def safetensors_file(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of one safetensors file. Raises ConfigError if its header does not fit its size."""
    from safetensors import SafetensorError, safe_open

    header = _header(file)
    try:
        handle = safe_open(str(file), framework="numpy")
        names_ = set(handle.keys())
    except (SafetensorError, OSError) as e:
        raise ConfigError(f"{file}: corrupted safetensors file ({e}).") from e
    if names_ != set(header):
        raise ConfigError(f"{file}: corrupted safetensors file: its header names a tensor twice.")

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return handle.get_tensor(name)
            except (SafetensorError, OSError) as e:
                raise ConfigError(f"{file}: {name}: {e}.") from e

        return read

    return {name: Tensor(shape, file, reader(name)) for name, shape in header.items()}


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    size = file.stat().st_size
    with file.open("rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8 or length < 2 or length > min(size - 8, _MAX_HEADER):
            raise ConfigError(
                f"{file}: not a safetensors file, or a damaged one: it says its header is {length} bytes long, the file"
                f" has {size} bytes."
            )
        text = f.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        shapes = {}
        end = 0
        for name, entry in entries.items():
            shape, (low, high) = tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in _WIDTH:
                raise ConfigError(f"{file}: {name} has type {entry['dtype']}; allowed are {', '.join(_WIDTH)}.")
            count = 1
            for n in shape:
                count *= n
            if min(shape, default=1) < 0 or not 0 <= low <= high or high - low != count * _WIDTH[entry["dtype"]]:
                raise ConfigError(
                    f"{file}: {name}: {entry['dtype']} of shape {list(shape)} cannot lie in bytes {low} to {high}."
                )
            shapes[name], end = shape, max(end, high)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ConfigError(f"{file}: corrupted safetensors header ({type(e).__name__}: {e}).") from e
    if 8 + length + end != size:
        raise ConfigError(
            f"{file}: truncated or corrupted: the header describes {8 + length + end} bytes, the file has {size}."
        )
    return shapes


def expected(config: Any, column: str) -> dict[str, tuple[names.Name, int]]:
    """Returns {tensor name: (row, layer)} of all tensors a model must have; `column` is "hf" or "gguf"."""
    layers = range(config.num_layers)
    return {
        getattr(row, column).format(i=i): (row, i)
        for row in names.names(config)
        for i in (layers if row.stacked else [0])
    }


def check(tensors: Mapping[str, Tensor], config: Any, column: str, where: Path) -> None:
    """Raises ConfigError unless the tensors are exactly those of the model, each of the right shape."""
    if config.num_layers > len(tensors):  # first: a corrupted num_layers would make a huge table of names
        raise ConfigError(f"{where}: {config.num_layers} layers, but only {len(tensors)} tensors.")
    want, size = expected(config, column), names.sizes(config)
    missing = sorted(want.keys() - tensors.keys())
    extra = sorted(tensors.keys() - want.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f" Found instead: {extra[0]}." if extra else ""
        raise ConfigError(f"{where}: missing tensor {missing[0]}{more}.{hint}")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ConfigError(
            f"{tensors[extra[0]].file}: unexpected tensor {extra[0]} {list(tensors[extra[0]].shape)}{more}: a Llama"
            f" with {config.num_layers} layers has no place for it.{nearest(extra[0], sorted(want))}"
        )
    for name, (row, _) in want.items():
        shape = names.file_shape(row.layout, size)
        if tensors[name].shape != shape:
            raise ConfigError(
                f"{tensors[name].file}: {name} has shape {list(tensors[name].shape)}, config says {list(shape)}"
                f" ({row.layout.split(' -> ')[0]})."
            )


def assemble(
    tensors: Mapping[str, Tensor], config: Any, *, column: str, where: Path, mesh: Any = None
) -> dict[str, Any]:
    """Returns the parameter tree, read tensor by tensor; with a mesh, each parameter is sharded over it as it is read.

    Args:
      config: ModelConfig; its param_dtype is that of the result.
      column: of the table of names: "hf" or "gguf".
      where: the source, for errors.

    Raises:
      ConfigError: tensors that are not exactly those of the model, or numbers that are not finite.
    """
    import jax
    import jax.numpy as jnp

    check(tensors, config, column, where)
    size, dtype = names.sizes(config), jnp.dtype(config.param_dtype)
    flat: dict[str, Any] = {}
    rows = {row.path: row for row in names.names(config)}
    shapes = {
        path: (config.num_layers,) * row.stacked + names.our_shape(row.layout, size) for path, row in rows.items()
    }
    placed = _shardings(shapes, dtype, mesh) if mesh is not None else {}
    for path, row in rows.items():
        shape = shapes[path]

        def extent(index: Any, shape: tuple[int, ...] = shape) -> tuple[tuple[int, int], ...]:
            return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))

        whole = tuple(slice(0, n) for n in shape)
        wanted = placed[path].addressable_devices_indices_map(shape).values() if mesh is not None else [whole]
        # One slab for each distinct shard of this process's devices; each tensor is read once, for all of them.
        slabs = {extent(i): np.empty([stop - start for start, stop in extent(i)], dtype) for i in wanted}
        for layer in range(config.num_layers) if row.stacked else [0]:
            tensor = tensors[getattr(row, column).format(i=layer)]
            values = names.from_file(tensor.read(), row.layout, size)
            for part, slab in slabs.items():
                if row.stacked and not part[0][0] <= layer < part[0][1]:
                    continue
                piece = slab[layer - part[0][0]] if row.stacked else slab
                piece[...] = values[tuple(slice(*ends) for ends in part[row.stacked :])]
                if not _is_finite(piece):
                    name = getattr(row, column).format(i=layer)
                    raise ConfigError(f"{tensor.file}: {name} holds numbers that are not finite: the file is damaged.")
            del values
        if mesh is None:
            flat[path] = jax.device_put(slabs[extent(whole)])
        else:
            flat[path] = _place(slabs, shape, placed[path], extent)
    return nest(flat)


def _is_finite(values: np.ndarray) -> bool:
    """Returns whether all numbers are finite. Tests their sum first, which takes no memory; it may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(values, dtype=np.float32)) or np.isfinite(values).all())


def _place(slabs: dict[Any, np.ndarray], shape: tuple[int, ...], where: Any, extent: Callable[[Any], Any]) -> Any:
    """Returns the global array; `slabs` are the shards of this process's devices, each freed once it is on them."""
    import jax

    devices: dict[Any, list] = {}
    for device, index in where.addressable_devices_indices_map(shape).items():
        devices.setdefault(extent(index), []).append(device)
    parts = []
    for part, holders in devices.items():
        slab = slabs.pop(part)
        parts += jax.block_until_ready([jax.device_put(slab, device) for device in holders])
        del slab
    return jax.make_array_from_single_device_arrays(shape, where, parts)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested dict from one with paths like "layers/attention/q/kernel"."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for p in parents:
            node = node.setdefault(p, {})
        node[last] = value
    return tree


def _shardings(shapes: Mapping[str, tuple[int, ...]], dtype: Any, mesh: Any) -> dict[str, Any]:
    import jax

    from giraffe_jax.model.config import PARAM_AXES
    from giraffe_jax.sharding import paths, shardings

    tree = nest({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()})
    return paths(shardings(tree, PARAM_AXES, mesh))
