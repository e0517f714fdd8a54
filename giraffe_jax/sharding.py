"""Sharding: one mesh, one table from logical axes to mesh axes, and the placement of every array that follows from
it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from giraffe_jax.config import ConfigError

AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, Any] = {
    # parameters
    "vocab": "tensor",
    "embed": ("fsdp", "context"),  # context divides tokens; parameters are sharded over it too, and gathered for use
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "rank": None,
    # activations
    "batch": ("data", "fsdp"),
    "tokens": "context",
    "residual_tokens": ("context", "tensor"),  # between layers, where tensor has no heads to divide
    "features": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: all devices that are left."""

    data: int = 1  # Devices among which the rows of a batch are divided, with a copy of the weights on each.
    fsdp: int = -1  # Devices among which rows, weights and optimizer state are divided.
    context: int = 1  # Devices that share the tokens of each row.
    tensor: int = 1  # Devices that share heads, MLP and vocabulary and, between layers, tokens.


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices, with axes data, fsdp, context, tensor.

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
        problem = "does not divide" if -1 in sizes else f"takes {known} devices, not"
        raise ConfigError(f"mesh: {text} {problem} the {len(devices)} devices here; set mesh.data or mesh.fsdp to -1.")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1
    if slices > 1:
        return _over_slices(sizes, devices, slices)
    try:
        return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))
    except NotImplementedError:  # no axis of the chips' torus has such a size: context=2 on 16 x 16 chips of v6e
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _over_slices(sizes: Sequence[int], devices: Sequence[Any], slices: int) -> Mesh:
    """Returns a mesh in which TPU slices, between which the network is slow, lie along data, or else along fsdp."""
    across = next((i for i, axis in enumerate(AXES[:2]) if sizes[i] % slices == 0), None)
    if across is None:
        raise ConfigError(f"mesh: {slices} slices divide neither data={sizes[0]} nor fsdp={sizes[1]}.")
    outer = [slices if i == across else 1 for i in range(len(AXES))]
    inner = [size // n for size, n in zip(sizes, outer, strict=True)]
    placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Returns the mesh axes that a logical axis is sharded over, by RULES."""
    rule = RULES[axis]
    return () if rule is None else rule if isinstance(rule, tuple) else (rule,)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Returns the PartitionSpec of logical axes, by RULES."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def paths(tree: Any) -> dict[str, Any]:
    """Returns {"layers/attention/q/kernel": leaf, ...} for nested dicts."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    """Returns the name in checkpoints of a path through dicts, dataclasses and tuples."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def shardings(tree: Any, table: Mapping[str, Sequence[str]], mesh: Mesh) -> Any:
    """Returns a NamedSharding for each leaf of a parameter tree, or of a tree whose paths end like one (optax states).

    Args:
      tree: arrays or ShapeDtypeStructs.
      table: parameter path -> logical axes.
      mesh: where to place them.

    Raises:
      ConfigError: a parameter is not in the table, or its mesh axes do not divide a dimension; names both.
    """

    def place(path, leaf):
        name = _name(path)
        axes = next((a for p, a in table.items() if name == p or name.endswith("/" + p)), None)
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        if axes is None or len(axes) != len(leaf.shape):
            why = "it is not in the table" if axes is None else f"the table has axes {', '.join(axes)}"
            raise ConfigError(f"mesh: no logical axes fit {name} of shape {tuple(leaf.shape)}: {why}.")
        for size, axis in zip(leaf.shape, axes, strict=True):
            device_axes = mesh_axes(axis)
            if size % math.prod(mesh.shape[a] for a in device_axes):
                parts = " x ".join(f"{a}={mesh.shape[a]}" for a in device_axes if mesh.shape[a] > 1)
                raise ConfigError(f"mesh: {parts} does not divide axis {axis!r} of {name}, which has {size}.")
        return NamedSharding(mesh, spec(axes))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of [B T] batches: rows over data and fsdp, tokens over context."""
    return NamedSharding(mesh, spec(("batch", "tokens")))


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """Returns (i, n): this process holds part i of n equal parts of a batch's rows.

    Processes that hold other tokens of the same rows, or other parts of the vocabulary, have the same part.

    Raises:
      ConfigError: by the mesh's order of devices, this process's rows are not such a part.
    """
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    parts = [i for i, row in enumerate(rows) if any(d.process_index == jax.process_index() for d in row)]
    count = len(rows) // len(parts)
    if parts != list(range(parts[0], parts[0] + len(parts))) or parts[0] % len(parts) or len(rows) % len(parts):
        raise ConfigError(
            f"mesh: process {jax.process_index()} would hold parts {parts} of {len(rows)} of a batch's rows; they must "
            "be consecutive, and as many in each process."
        )
    return parts[0] // len(parts), count


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns x with its sharding constrained by logical axes on the current mesh; without a mesh, x itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def of_residual(x: jax.Array) -> jax.Array:
    """Returns the residual stream [B T D] with its tokens sharded over all devices that share its rows.

    Those along tensor too, as in sequence parallelism (arXiv:2205.05198): otherwise each would keep a whole copy for
    the backward pass.
    """
    return constrain(x, "batch", "residual_tokens" if _parts("residual_tokens", x.shape[1]) > 1 else "tokens", None)


def _parts(axis: str, size: int) -> int:
    """Returns into how many parts the current mesh divides an axis of `size`; 1 if it does not divide evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else math.prod(mesh.shape[name] for name in mesh_axes(axis))
    return 1 if size % count else count


def _spread(x: jax.Array, first: int) -> jax.Array:
    """Returns x with axes `first` and `first + 1` sharded as batch and tokens are; the other axes are left to XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for at, axis in ((first, "batch"), (first + 1, "tokens")):
        axes[at] = RULES[axis] if x.shape[at] > 1 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def local_chunks(x: jax.Array, chunk: int) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Returns x [B T ...] as [n P C b t ...] with t <= chunk, and the function that puts such an array together again.

    P and C are the parts that the mesh divides rows and tokens into: each of the n chunks holds t tokens of each
    device's rows, so that a loop over chunks moves no tokens between devices.
    """
    rows, tokens = x.shape[:2]
    P, C = _parts("batch", rows), _parts("tokens", tokens)
    own_tokens = tokens // C
    count = -(-own_tokens // chunk)
    size = -(-own_tokens // count)

    def split(x):
        x = x.reshape(P, rows // P, C, own_tokens, *x.shape[2:])
        x = jnp.pad(x, ((0, 0),) * 3 + ((0, count * size - own_tokens),) + ((0, 0),) * (x.ndim - 4))
        x = x.reshape(*x.shape[:3], count, size, *x.shape[4:])
        return _spread(jnp.moveaxis(x, (3, 0, 2, 1), (0, 1, 2, 3)), 1)

    def restore(x):
        x = jnp.moveaxis(x, (0, 1, 2, 3), (3, 0, 2, 1))
        x = x.reshape(*x.shape[:3], count * size, *x.shape[5:])[:, :, :, :own_tokens]
        return constrain(x.reshape(rows, tokens, *x.shape[4:]), "batch", "tokens", *[None] * (x.ndim - 4))

    return split(x), restore


def copies(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Returns weight as [P C ...], a copy for each part of x [B T ...]: whole on each device, but for the tensor axis.

    For loops: gathers the weight once before the loop, and sums its gradient over devices once after it.
    """
    shape = (_parts("batch", x.shape[0]), _parts("tokens", x.shape[1]), *weight.shape)
    return _spread(jnp.broadcast_to(weight, shape), 0)
