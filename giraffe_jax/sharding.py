"""Sharding: one mesh, one table from logical axes to mesh axes, and the placement of every array that follows from
it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from giraffe_jax.config import ConfigError

AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, Any] = {
    # parameters
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    # activations
    "batch": ("data", "fsdp"),
    "tokens": "context",
    "features": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: whatever is left."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices, axes data, fsdp, context, tensor.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    text = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"mesh: {text}: sizes are positive, and one of them may be -1.")
    if (-1 in sizes and len(devices) % known) or (-1 not in sizes and known != len(devices)):
        what = "does not divide" if -1 in sizes else f"takes {known} devices, not"
        raise ConfigError(f"mesh: {text} {what} the {len(devices)} devices here; set mesh.data or mesh.fsdp to -1.")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Returns the PartitionSpec of logical axes, by RULES."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def paths(tree: Any) -> dict[str, Any]:
    """Returns {"layers/attention/q/kernel": leaf, ...} for nested dicts."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    """Returns a path through dicts, dataclasses and tuples as a checkpoint names it."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def shardings(tree: Any, table: Mapping[str, Sequence[str]], mesh: Mesh) -> Any:
    """Returns a NamedSharding for each leaf of a parameter tree, or of a tree whose paths end like one (optax states).

    Args:
      tree: arrays or ShapeDtypeStructs.
      table: parameter path -> logical axes.
      mesh: where to place them.

    Raises:
      ConfigError: a dimension that its mesh axis does not divide, naming the parameter.
    """

    def place(path, leaf):
        name = _name(path)
        axes = next((a for p, a in table.items() if name == p or name.endswith("/" + p)), None)
        if axes is None or len(axes) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        for size, axis in zip(leaf.shape, axes, strict=True):
            parts = mesh.shape[RULES[axis]] if RULES[axis] else 1
            if size % parts:
                raise ConfigError(
                    f"mesh: {RULES[axis]}={parts} does not divide axis {axis!r} of {name}, which has {size}."
                )
        return NamedSharding(mesh, spec(axes))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of [B T] batches: rows over data and fsdp, tokens over context."""
    return NamedSharding(mesh, spec(("batch", "tokens")))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns x with its sharding fixed by logical axes under the current mesh; x itself where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))
