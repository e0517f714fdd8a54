"""Attention of whole rows to themselves, by the fastest kernel that supports it: `choose` says which, and why.

cuDNN and Pallas share one custom_vjp, which keeps the output and the log-sum-exp under the names that remat policies
know.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from giraffe_jax import devices, sharding
from giraffe_jax.attention import columns, context, cudnn, parts, ranges, tpu
from giraffe_jax.attention.blockwise import ATTENTION_LSE, ATTENTION_OUT, blockwise
from giraffe_jax.attention.dense import dense
from giraffe_jax.attention.intervals import Interval, intervals
from giraffe_jax.attention.places import Place
from giraffe_jax.config import ConfigError
from giraffe_jax.positions import Band

Implementation = Literal["auto", "dense", "blockwise", "cudnn", "pallas"]

DENSE_UP_TO = 128  # queries; with so few, all logits are one block
CANDIDATES: dict[str, tuple[str, ...]] = dict(cpu=(), gpu=("cudnn", "pallas"), tpu=("pallas",))  # what "auto" tries


class Kernel(NamedTuple):
    """The name of the chosen implementation, and why `auto` passed over each one that it tried before."""

    name: str
    passed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + (f" ({'; '.join(self.passed)})" if self.passed else "")


def choose(
    implementation: Implementation,
    *,
    tokens: int,
    heads: tuple[int, int, int],
    dtype: Any,
    bands: tuple[Band, ...] = (),
    bias: Any = None,
    batch: int = 1,
) -> Kernel:
    """Returns the implementation of attention over whole rows for the devices that are traced for.

    Args:
      implementation: a name, or "auto": the first of dense (few tokens), cudnn, pallas and blockwise that is supported.
      tokens, batch: tokens of a row, and rows.
      heads: query heads, key heads and their width.
      dtype: of queries, keys and values.
      bands, bias: as in `attend`.

    Raises:
      ConfigError: the implementation was asked for by name and does not support this; says why.
    """
    workload: dict[str, Any] = dict(batch=batch, tokens=tokens, heads=heads)
    workload |= dict(dtype=jnp.dtype(dtype), bands=bands, bias=bias)
    if implementation in ("dense", "blockwise") or (implementation == "auto" and tokens <= DENSE_UP_TO):
        return Kernel("dense" if implementation == "auto" else implementation)
    if implementation != "auto":
        reason = unsupported(implementation, **workload)
        if reason is not None:
            raise ConfigError(
                f'model.attention: "{implementation}" does not work here: {reason}. "auto" takes one that does.'
            )
        return Kernel(implementation)
    passed = []
    for name in CANDIDATES[devices.target().platform]:
        reason = unsupported(name, **workload)
        if reason is None:
            return Kernel(name, tuple(passed))
        passed.append(f"{name}: {reason}")
    return Kernel("blockwise", tuple(passed))


def unsupported(name: str, *, batch: int, tokens: int, heads, dtype, bands, bias) -> str | None:
    """Returns None if a kernel supports these arguments of `choose`, else the reason."""
    platform, mesh = devices.target()
    num_heads, num_kv_heads, head_dim = heads
    if name not in CANDIDATES[platform] and not (name == "pallas" and INTERPRET):
        return f"made for NVIDIA GPUs{' and TPUs' if name == 'pallas' else ''}, not for {platform}"
    if bias is not None and not (name == "pallas" and getattr(bias, "by_distance", False)):
        return "a bias on logits" + (" by more than distance" if name == "pallas" else "")
    if any(band.mask is not None for band in bands):
        return "a band with a mask of its own"
    if mesh is not None:
        rows = math.prod(mesh.shape[axis] for axis in sharding.mesh_axes("batch"))
        parts = mesh.shape["tensor"]
        if mesh.shape["context"] > 1:
            if name == "cudnn":
                return "tokens of a row on several devices (mesh.context)"
            if bias is not None:
                return "a bias on logits of a row on several devices (mesh.context)"
            shared = columns.undivided(batch=batch, tokens=tokens, heads=heads[:2])
            if shared is not None:
                return shared
        if batch % rows or num_heads % parts or num_kv_heads % parts:
            return f"{batch} rows and {num_kv_heads} key heads do not divide over {rows} x {parts} devices"
    if platform == "tpu":
        table = tokens if bias is not None else 0
        return tpu.missing(dtype, head_dim, table=table, group=num_heads // num_kv_heads)
    if head_dim > ranges.WIDEST:  # for cuDNN too: packed rows run by the Pallas kernel
        return f"heads of {head_dim}; at most {ranges.WIDEST}"
    if name == "pallas":
        return None
    if dtype.itemsize != 2:
        return f"{dtype.name}; it takes 16-bit floats"
    if any(band.also for band in bands):
        return "a window or chunks"
    if len(bands) > 1:
        return f"{len(bands)} bands"
    if bands:
        return "a band"
    return cudnn.missing(head_dim)


def described(model: Any, *, batch: int, tokens: int) -> str:
    """Returns which kernel computes a model's attention over rows, such as "pallas, 2 bands (cudnn: 2 bands)".

    Args:
      model: a ModelConfig.
      batch, tokens: rows of a forward pass and their tokens.
    """
    e = jax.eval_shape(lambda: model.bind().at(jnp.zeros((1, 2)), key=jax.random.key(0)))
    heads = (model.num_heads, model.num_kv_heads, model.head_dim)
    workload: dict[str, Any] = dict(batch=batch, tokens=tokens, heads=heads, dtype=model.dtype)
    kernel = choose(model.attention, bands=e.bands, bias=e.bias, **workload)
    bands = max(1, len(e.bands))
    name = f"{kernel.name}, {bands} band{'s' * (bands > 1)}"
    name += ", packed rows by pallas" if kernel.name == "cudnn" else ""
    name += columns.described(kernel.name, model.context, batch=batch, tokens=tokens, heads=heads[:2])
    return name + (f" ({'; '.join(kernel.passed)})" if kernel.passed else "")


INTERPRET = False  # tests run the Pallas kernels on a CPU


def attend_rows(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B T K H"], ...],
    v: Float[Array, "B T K H"],
    *,
    place: Place,
    bands: tuple[Band, ...] = (),
    bias: Any = None,
    implementation: Implementation = "auto",
    block_size: int | None = None,
    how: context.How = "all-gather",
) -> Float[Array, "B T N H"]:
    """Returns causal attention of whole rows to themselves; arguments as in `attend`.

    Args:
      how: how devices that share rows (mesh.context) exchange keys and values.
      place: of every token of the rows: from `place_of_rows`, or in a model's order of columns from `Columns.place`.

    Raises:
      ConfigError: see `choose`.
    """
    batch, tokens, num_heads, head_dim = q[0].shape
    kernel = choose(
        implementation, tokens=tokens, heads=(num_heads, v.shape[2], head_dim), dtype=v.dtype, bands=bands, bias=bias,
        batch=batch,
    ).name  # fmt: skip
    if kernel != "dense" and isinstance(place, columns.Zigzag):
        stretch = tokens // (2 * columns.size())
        by_pallas = parts.Ranges(_tiles(v, None, stretch), INTERPRET)
        part = by_pallas if kernel == "pallas" else parts.Blockwise(block_size)
        return context.attend(how, part, q, k, v, place=place, bands=bands, bias=bias)
    if kernel == "blockwise" and columns.whole(batch=batch, heads=(num_heads, v.shape[2])):
        return context.attend(None, parts.Blockwise(block_size), q, k, v, place=place, bands=bands, bias=bias)
    if columns.size() > 1:  # the work is not divided: each device of a row computes all queries and needs all keys
        k, v = jax.tree.map(lambda x: sharding.constrain(x, "batch", None, "kv_heads", None), (k, v))
    if kernel in ("dense", "blockwise"):
        arguments: dict[str, Any] = dict(q_place=place, k_place=place, bands=bands, bias=bias)
        run = dense if kernel == "dense" else functools.partial(blockwise, block_size=block_size)
        return run(q, k, v, **arguments)[0]
    out: Any = _rows(kernel, q, k, v, place, intervals(place, bands), _table(bias, tokens, num_heads))
    return out


def _table(bias, tokens: int, num_heads: int) -> Float[Array, "N T"] | None:
    """Returns a bias by distance as a table of what it adds at each distance."""
    if bias is None:
        return None
    distances = jnp.arange(tokens, dtype=jnp.int32)[None, None, :, None]
    return jnp.broadcast_to(bias(distances, jnp.zeros_like(distances[:, :, :1]), num_heads), (1, num_heads, tokens, 1))[
        0, ..., 0
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(kernel, q, k, v, place, seen, table):
    return _forward(kernel, q, k, v, place, seen, table)[0]


def _rows_forward(kernel, q, k, v, place, seen, table):
    out, lse = _forward(kernel, q, k, v, place, seen, table)
    out, lse = checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, place, seen, table, out, lse)


def _rows_backward(kernel, saved, d_out):
    q, k, v, place, seen, table, out, lse = saved
    run = functools.partial(_backward_here, kernel)
    d_q, d_k, d_v, d_table = _over_devices(run, q, k, v, place, seen, table, out, lse, d_out)
    return d_q, d_k, d_v, None, None, d_table


_rows.defvjp(_rows_forward, _rows_backward)


def _forward(kernel, q, k, v, place, seen, table):
    return _over_devices(functools.partial(_forward_here, kernel), q, k, v, place, seen, table)


def _forward_here(kernel, q, k, v, place, seen, table):
    tile = _tiles(v, table, v.shape[1]).forward

    def by_ranges():
        return _pallas().forward(q, k, v, seen, tile=tile, bias=table, interpret=INTERPRET)

    if kernel == "pallas":
        return by_ranges()
    # cuDNN's causal kernel is the faster one, but cannot mask between documents.
    return lax.cond(_one_document(place), lambda: cudnn.forward(q[0], k[0], v), by_ranges)


def _backward_here(kernel, q, k, v, place, seen, table, out, lse, d_out):
    tiles = _tiles(v, table, v.shape[1])

    def by_ranges():
        dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        return _pallas().backward(q, k, v, seen, lse, dot, d_out, tiles=tiles, bias=table, interpret=INTERPRET)

    def by_cudnn():
        d_q, d_k, d_v = cudnn.backward(q[0], k[0], v, out, lse, d_out)
        return (d_q,), (d_k,), d_v, None

    gradients = by_ranges() if kernel == "pallas" else lax.cond(_one_document(place), by_cudnn, by_ranges)
    if table is None or devices.target().mesh is None:
        return gradients
    return *gradients[:3], lax.psum(gradients[3], sharding.mesh_axes("batch"))  # all rows share the table


def _pallas() -> Any:
    return tpu if devices.target().platform == "tpu" else ranges


def _tiles(v, table, tokens: int) -> Any:
    if devices.target().platform == "tpu":
        return tpu.tiles(v.dtype, v.shape[-1], tokens)
    return ranges.tiles(v.dtype, v.shape[-1], capability=devices.capability(), bias=table is not None)


def _one_document(place: Place):
    return jnp.all(place.start == 0)


def _over_devices(function, q, k, v, place: Place, seen: Interval, table, *outputs):
    """Runs the function on each device's rows and heads: the compiler shards everything else, but not a kernel.

    `outputs` is empty in the forward pass. In the backward pass it is the output, the log-sum-exp and the output's
    gradient, and the function returns the gradients of q, k, v and the table.
    """
    mesh = devices.target().mesh
    if mesh is None:
        return function(q, k, v, place, seen, table, *outputs)
    batch = sharding.RULES["batch"]
    heads, of_table = PartitionSpec(batch, None, "tensor"), PartitionSpec("tensor")
    specs = (heads, heads, heads, PartitionSpec(batch), PartitionSpec(None, batch), of_table, *[heads] * len(outputs))
    out_specs = (heads, heads, heads, of_table) if outputs else heads
    run = jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)
    return run(q, k, v, place, seen, table, *outputs)
