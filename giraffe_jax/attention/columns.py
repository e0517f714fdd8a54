"""The order of tokens on devices that share rows: zig-zag (Llama Team, arXiv:2407.21783, section 3.3.2).

A row is cut into 2 C stretches, and device i of C holds stretches i and 2 C - 1 - i, so that causal attention is the
same work for each. A model asks for its `Columns`, permutes its inputs once and permutes its last hidden states back;
the layers in between do not depend on the order.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from giraffe_jax import devices, sharding
from giraffe_jax.attention.places import Place

AXIS = "context"


class Zigzag(Place):
    """Places of tokens in zig-zag order: each device's tokens are two stretches of the row, of equal length."""

    __slots__ = ()


def size() -> int:
    """Returns how many devices of the current mesh share the tokens of a row."""
    mesh = devices.target().mesh
    return 1 if mesh is None else mesh.shape.get(AXIS, 1)


def undivided(*, batch: int, tokens: int, heads: tuple[int, int]) -> str | None:
    """Returns None if the devices that share a row also share the work of its attention, else why they do not.

    Args:
      batch, tokens: rows and their tokens.
      heads: query heads and key heads.
    """
    mesh, parts = devices.target().mesh, size()
    if mesh is None or parts == 1:
        return "one device a row"
    rows = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
    if tokens % (2 * parts):
        return f"{tokens} tokens a row do not divide into {2 * parts} stretches, two for each device of mesh.context"
    if batch % rows or any(count % mesh.shape["tensor"] for count in heads):
        return f"{batch} rows and {heads[1]} key heads do not divide over {rows} x {mesh.shape['tensor']} devices"
    return None


def whole(*, batch: int, heads: tuple[int, int]) -> bool:
    """Returns whether there are several devices and each holds whole rows and heads of such a batch."""
    mesh = devices.target().mesh
    if mesh is None or size() > 1:
        return False
    rows = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
    return batch % rows == 0 and not any(count % mesh.shape["tensor"] for count in heads)


def described(kernel: str, how: str, *, batch: int, tokens: int, heads: tuple[int, int]) -> str:
    """Returns how a row's devices share its attention, such as ", context 4 by all-gather"; "" for one device a row."""
    if size() == 1:
        return ""
    reason = "few tokens" if kernel == "dense" else undivided(batch=batch, tokens=tokens, heads=heads)
    return f", context {size()} " + (f"by {how}" if reason is None else f"shares memory but not work: {reason}")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The order of tokens in the rows of a forward pass: zig-zag, or the row's own."""

    zigzag: bool = False

    def place(self, place: Place) -> Place:
        """Returns the places of whole rows, in this order."""
        return Zigzag(*(self.spread(x) for x in place)) if self.zigzag else place

    def spread(self, x: Any, axis: int = 1) -> Any:
        """Returns an array [... B T ...] in this order; `axis` is that of T. Where it has size 1 nothing moves."""
        return _moved(x, axis, back=False) if self.zigzag and x.shape[axis] > 1 else x

    def restore(self, x: Any, axis: int = 1) -> Any:
        """Returns an array that is in this order, back in the row's own order."""
        return _moved(x, axis, back=True) if self.zigzag else x


def columns_of(*, batch: int, tokens: int, heads: tuple[int, int]) -> Columns:
    """Returns the order for rows of this size on the current mesh."""
    return Columns(undivided(batch=batch, tokens=tokens, heads=heads) is None)


def _moved(x, axis: int, back: bool):
    """Returns x permuted to zig-zag order or, with `back`, to the row's own.

    In the row's order device i holds stretches 2 i and 2 i + 1, so even and odd stretches take one ppermute each.
    """
    axis, parts = axis % x.ndim, size()
    spec: list[Any] = [None] * x.ndim
    spec[axis], spec[axis - 1] = AXIS, sharding.RULES["batch"] if x.shape[axis - 1] > 1 else None
    owner = [min(s, 2 * parts - 1 - s) for s in range(2 * parts)]
    routes = [[(i, owner[2 * i + odd])[:: -1 if back else 1] for i in range(parts)] for odd in (0, 1)]

    def here(x):
        is_odd = lax.axis_index(AXIS) % 2 == 1  # in zig-zag order device i's first stretch is i

        def ordered(a, b):
            return jnp.where(is_odd, b, a), jnp.where(is_odd, a, b)

        halves = jnp.split(x, 2, axis)
        halves = ordered(*halves) if back else halves
        halves = [lax.ppermute(half, AXIS, route) for half, route in zip(halves, routes, strict=True)]
        return jnp.concatenate(halves if back else ordered(*halves), axis)

    return jax.shard_map(here, in_specs=PartitionSpec(*spec), out_specs=PartitionSpec(*spec))(x)


def divided(tree, parts: int):
    """Returns a device's arrays [B T ...] as [parts B t ...]: one part of all its tokens, or its two stretches."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0), tree)


def joined(tree):
    """Returns arrays [parts B t ...] as [B T ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), tree)
