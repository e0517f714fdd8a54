"""Attention of rows whose tokens are spread over the mesh axis `context`: each device attends from its own queries.

Keys and values are gathered, and each device runs the kernel that one device would run on its part of the queries; the
gradients of keys and values are summed by a reduce-scatter. Columns are in zig-zag order (Llama Team, arXiv:2407.21783,
section 3.3.2): of 2 C stretches of a row, device i has i and 2 C - 1 - i, so that under causality all have as much to do.
A model asks for its `Columns`, moves its inputs once, and moves the last hidden states back; nothing between knows.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from giraffe_jax import devices, sharding
from giraffe_jax.attention import ranges
from giraffe_jax.attention.blockwise import ATTENTION_LSE, ATTENTION_OUT
from giraffe_jax.attention.blockwise import backward as blockwise_backward
from giraffe_jax.attention.blockwise import forward as blockwise_forward
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.attention.places import Place

AXIS = "context"


class Zigzag(Place):
    """The places of columns in zig-zag order: each device's tokens are two stretches of the row, of equal length."""

    __slots__ = ()


def size() -> int:
    """Returns over how many devices the current mesh spreads the tokens of a row."""
    mesh = devices.target().mesh
    return 1 if mesh is None else mesh.shape.get(AXIS, 1)


def undivided(*, batch: int, tokens: int, heads: tuple[int, int]) -> str | None:
    """Returns None where the devices of a row share the work of its attention, else why not.

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


def described(kernel: str, *, batch: int, tokens: int, heads: tuple[int, int]) -> str:
    """Returns how a row's devices share its attention, such as ", context 4 by all-gather"; "" for one device a row."""
    if size() == 1:
        return ""
    reason = "few tokens" if kernel == "dense" else undivided(batch=batch, tokens=tokens, heads=heads)
    how = "by all-gather" if reason is None else f"shares memory but not work: {reason}"
    return f", context {size()} {how}"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The order in which a forward pass has the tokens of its rows."""

    zigzag: bool = False

    def place(self, place: Place) -> Place:
        """Returns the places of whole rows, in this order."""
        return Zigzag(*(self.spread(x) for x in place)) if self.zigzag else place

    def spread(self, x: Any, axis: int = 1) -> Any:
        """Returns an array [... B T ...] in this order; `axis` is that of T. Where it has size 1 nothing moves."""
        return _moved(x, axis, back=False) if self.zigzag and x.shape[axis] > 1 else x

    def restore(self, x: Any, axis: int = 1) -> Any:
        """Returns an array in this order in the row's own."""
        return _moved(x, axis, back=True) if self.zigzag else x


def columns(*, batch: int, tokens: int, heads: tuple[int, int]) -> Columns:
    """Returns the order for rows of this size on the current mesh."""
    return Columns(undivided(batch=batch, tokens=tokens, heads=heads) is None)


def _moved(x, axis: int, back: bool):
    """A device holds stretches 2 i and 2 i + 1 in the row's order, so even and odd ones are one permutation each."""
    axis, parts = axis % x.ndim, size()
    spec: list[Any] = [None] * x.ndim
    spec[axis], spec[axis - 1] = AXIS, sharding.RULES["batch"] if x.shape[axis - 1] > 1 else None
    owner = [min(s, 2 * parts - 1 - s) for s in range(2 * parts)]
    routes = [[(i, owner[2 * i + odd])[:: -1 if back else 1] for i in range(parts)] for odd in (0, 1)]

    def here(x):
        is_odd = lax.axis_index(AXIS) % 2 == 1  # device i's first stretch is i

        def ordered(a, b):
            return jnp.where(is_odd, b, a), jnp.where(is_odd, a, b)

        halves = jnp.split(x, 2, axis)
        halves = ordered(*halves) if back else halves
        halves = [lax.ppermute(half, AXIS, route) for half, route in zip(halves, routes, strict=True)]
        return jnp.concatenate(halves if back else ordered(*halves), axis)

    return jax.shard_map(here, in_specs=PartitionSpec(*spec), out_specs=PartitionSpec(*spec))(x)


@runtime_checkable
class Part(Protocol):
    """A kernel on one device: attention of a run of a row's queries to all of its keys. Hashable."""

    def forward(self, q, k, v, q_place: Place, k_place: Place, bands, bias) -> tuple:
        """Returns the output [B T N H] and its log-sum-exp [B T N]."""
        ...

    def backward(self, q, k, v, q_place: Place, k_place: Place, bands, bias, out, lse, d_out) -> tuple:
        """Returns the gradients of q, k, v and bias; `lse` may be of more keys than these."""
        ...


class Blockwise(NamedTuple):
    """Any bands, masks and biases, in plain JAX."""

    block_size: int | None = None

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        return blockwise_forward(self.block_size, q, k, v, bias, (q_place, k_place), bands)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        places = (q_place, k_place)
        return blockwise_backward(self.block_size, q, k, v, bias, places, bands, out, lse, d_out, jnp.zeros_like(lse))


class Ranges(NamedTuple):
    """The Pallas kernel for GPUs; its biases count from the first of its queries, so here it has none."""

    tiles: ranges.Tiles
    interpret: bool = False

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        del k_place, bias
        return ranges.forward(q, k, v, intervals(q_place, bands), tile=self.tiles.forward, interpret=self.interpret)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        del k_place, bias
        dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        about: dict[str, Any] = dict(tiles=self.tiles, interpret=self.interpret)
        return ranges.backward(q, k, v, intervals(q_place, bands), lse, dot, d_out, **about)


def attend(part: Part, q: tuple, k: tuple, v, *, place: Zigzag, bands: tuple, bias: Any):
    """Returns causal attention of whole rows, whose columns are in zig-zag order, to themselves: [B T N H].

    Args:
      part: the kernel.
      q, k, v, bands, bias: as in attention.attend.
      place: from `Columns.place`.
    """
    found: Any = _attend(part, q, k, v, place, bands, bias)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(part, q, k, v, place, bands, bias):
    return _forward(part, q, k, v, place, bands, bias)[0]


def _attend_forward(part, q, k, v, place, bands, bias):
    out, lse = _forward(part, q, k, v, place, bands, bias)
    out = checkpoint_name(out, ATTENTION_OUT)
    lse = checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, place, bands, bias, out, lse)  # keys and values of this device alone: gathered once more


def _attend_backward(part, saved, d_out):
    *inputs, out, lse = saved
    d_q, d_k, d_v, d_bias = _over_devices(functools.partial(_backward_here, part), *inputs, out, lse, d_out)
    return d_q, d_k, d_v, None, None, d_bias


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(part, *inputs):
    return _over_devices(functools.partial(_forward_here, part), *inputs)


def _over_devices(function, q, k, v, place, bands, bias, *more):
    """Returns the function of each device's rows, tokens and heads; `more` as in engine._over_devices."""
    tokens = PartitionSpec(sharding.RULES["batch"], AXIS)
    heads, whole = PartitionSpec(*tokens, "tensor"), PartitionSpec()
    specs = (heads, heads, heads, tokens, whole, whole, *[heads] * len(more))
    out_specs = (heads, heads, heads, whole) if more else heads
    run = jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)
    return run(q, k, v, place, bands, bias, *more)


def _forward_here(part, q, k, v, place, bands, bias):
    k_all, v_all, k_place = _gathered((k, v, Place(*place)))
    bias = _of_heads(bias, q[0].shape[2])

    def stretch(inputs):
        q, q_place = inputs
        return part.forward(q, k_all, v_all, q_place, k_place, bands, bias)

    out, lse = lax.map(stretch, _stretches((q, Place(*place))))
    return _joined((out.astype(v.dtype), lse))


def _backward_here(part, q, k, v, place, bands, bias, out, lse, d_out):
    k_all, v_all, k_place = _gathered((k, v, Place(*place)))
    bias = _of_heads(bias, q[0].shape[2])

    def stretch(sums, inputs):
        q, q_place, out, lse, d_out = inputs
        d_q, *more = part.backward(q, k_all, v_all, q_place, k_place, bands, bias, out, lse, d_out)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, tuple(more)), d_q

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k_all, v_all, bias))
    (d_k, d_v, d_bias), d_q = lax.scan(stretch, zeros, _stretches((q, Place(*place), out, lse, d_out)))
    cast = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
    d_k, d_v = _scattered(cast((d_k, d_v), (k, v)))
    if bias is not None:
        d_bias = cast(lax.psum(d_bias, sharding.AXES), bias)
        d_bias = d_bias.bias if isinstance(d_bias, _OfHeads) else d_bias
    return cast(_joined(d_q), q), d_k, d_v, d_bias


def _stretches(tree):
    """Returns a device's arrays [B T ...] as [2 B t ...], the two runs of its tokens."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], 2, -1, *x.shape[2:]), 1, 0), tree)


def _joined(tree):
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def _gathered(tree):
    """Returns a device's arrays [B T ...] as those of all tokens, in the row's order."""

    def one(x):
        each = lax.all_gather(x, AXIS, axis=1).reshape(x.shape[0], size(), 2, -1, *x.shape[2:])
        ordered = jnp.concatenate([each[:, :, 0], each[:, ::-1, 1]], axis=1)
        return ordered.reshape(x.shape[0], -1, *x.shape[2:])

    return jax.tree.map(one, tree)


def _scattered(tree):
    """Returns the sums over devices of arrays of all tokens, each device's tokens of them: the transpose of `_gathered`."""

    def one(x):
        halves = x.reshape(x.shape[0], 2, size(), -1, *x.shape[2:])
        each = jnp.stack([halves[:, 0], halves[:, 1, ::-1]], axis=2)
        return lax.psum_scatter(each.reshape(x.shape), AXIS, scatter_dimension=1, tiled=True)

    return jax.tree.map(one, tree)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("bias",), meta_fields=("total",))
@dataclasses.dataclass(frozen=True)
class _OfHeads:
    """A bias on the logits of a device's heads, of `total`."""

    bias: Any
    total: int

    def __call__(self, i, j, num_heads: int):
        found = self.bias(i, j, self.total)
        found = jnp.broadcast_to(found, (*found.shape[:-3], self.total, *found.shape[-2:]))
        return lax.dynamic_slice_in_dim(found, lax.axis_index("tensor") * num_heads, num_heads, axis=-3)


def _of_heads(bias, here: int):
    over = lax.axis_size("tensor")
    return bias if bias is None or over == 1 else _OfHeads(bias, here * over)
