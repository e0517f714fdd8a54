"""Attention over intervals as a Pallas kernel for NVIDIA GPUs, by way of Triton: any number of bands, one softmax.

The kernels are FlashAttention's (Dao, arXiv:2307.08691) with three differences: the bands of a query share one online
softmax; which blocks are visited is read from intervals, which are traced, and a mask is evaluated only in blocks that
an interval cuts; and a bias on logits is read from a table by distance, whose gradient is summed tile by tile along
diagonals, in a fixed order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from giraffe_jax.attention import kernels
from giraffe_jax.attention.intervals import Interval, padded, runs_of_keys, runs_of_queries

WIDEST = 128  # width of heads; for wider ones no tiles have been tried


class Tile(NamedTuple):
    """Tokens of a block of queries and of a block of keys, warps of a program, and blocks that are loaded ahead."""

    q: int
    k: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    d_q: Tile
    d_kv: Tile


def tiles(dtype: Any, head_dim: int, *, capability: str = "9.0", bias: bool = False) -> Tiles:
    """Returns the tiles of each kernel: on an H100 the fastest that were tried (LOG.md).

    Args:
      dtype: of queries, keys and values.
      head_dim: their width, up to WIDEST.
      capability: compute capability of the GPUs. Those whose multiprocessors have no more than 200 KiB of shared
        memory, unlike an H100's or B200's, get tiles that fit in 96 KiB; they have not been run on such a card.
      bias: whether there is a table of biases, since what is read of it takes shared memory too.
    """
    if jnp.dtype(dtype).itemsize > 2:  # matmuls without tensor cores are unrolled: larger tiles compile for minutes
        return Tiles(*[Tile(32, 32, 8, 1) if head_dim > 64 else Tile(32, 32, 4, 2)] * 3)
    if capability not in ("9.0", "10.0", "10.3"):
        return Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))
    if head_dim > 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 2) if bias else Tile(128, 128, 8, 2), Tile(64, 64, 4, 2))
    return Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def forward(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    seen: Interval,
    *,
    tile: Tile,
    bias: Float[Array, "N T"] | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns attention in the dtype of v and its log-sum-exp in float32; a query that sees no key has 0 and MASKED.

    Args:
      q, k: one of each per band.
      v: values.
      seen: the keys that each query sees in each band.
      bias: what each head adds to the logits of pairs at a distance of 0, 1, ... tokens.
    """
    (batch, num_tokens, num_heads, width), num_kv_heads = q[0].shape, v.shape[2]
    q, k, v = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k)
    seen = padded(seen, tile.q)
    runs = jnp.stack(runs_of_keys(seen, tile.q, tile.k), axis=-1)
    group, bands, rows, keys, wide = num_heads // num_kv_heads, len(q), q[0].shape[1], v.shape[1], v.shape[3]
    of_queries = pl.BlockSpec((None, tile.q, None, wide), lambda i, n, b: (b, i, n, 0))
    of_keys = pl.BlockSpec((None, keys, None, wide), lambda i, n, b: (b, 0, n // group, 0))
    ends = pl.BlockSpec((bands, None, tile.q), lambda i, n, b: (0, b, i))
    tables, of_tables = _tables(bias, rows)
    out, lse = pl.pallas_call(
        functools.partial(kernels.forward, bands=bands, block=tile.k, scale=width**-0.5, precision=_precision(v)),
        grid=(rows // tile.q, num_heads, batch),
        in_specs=[
            *[of_queries] * bands, *[of_keys] * bands, of_keys, ends, ends,
            pl.BlockSpec((bands, None, None, 4), lambda i, n, b: (0, b, i, 0)),
            *of_tables,
        ],
        out_specs=[of_queries, pl.BlockSpec((None, None, tile.q), lambda i, n, b: (b, n, i))],
        out_shape=[
            jax.ShapeDtypeStruct(q[0].shape, v.dtype),
            jax.ShapeDtypeStruct((batch, num_heads, rows), jnp.float32),
        ],
        **_compiled(tile, interpret, "attention"),
    )(*q, *k, v, *seen, runs, *tables)  # fmt: skip
    return out[:, :num_tokens, :, :width], jnp.moveaxis(lse, 1, 2)[:, :num_tokens]


def backward(q, k, v, seen: Interval, lse, dot, d_out, *, tiles: Tiles, bias=None, interpret: bool = False):
    """Returns the gradients of q, k and v, in their dtypes, and that of bias in float32, or None.

    Args:
      q, k, v, seen, bias: as in `forward`.
      lse: log-sum-exp of the logits over all keys that the queries see, also those that are not in k, [B T N].
      dot: sum of d_out * out over a head's width, less the gradient of lse, [B T N].
      d_out: gradient of the output, [B T N H].
    """
    (batch, num_tokens, num_heads, width), num_kv_heads, num_keys = q[0].shape, v.shape[2], v.shape[1]
    group, bands, dtypes = num_heads // num_kv_heads, len(q), (q[0].dtype, v.dtype)
    at_heads = lambda x: jnp.moveaxis(x.astype(jnp.float32), 2, 1)  # noqa: E731
    settings: dict[str, Any] = dict(bands=bands, scale=width**-0.5, precision=_precision(v))
    d_out, lse, dot = d_out.astype(v.dtype), at_heads(lse * kernels.LOG2_E), at_heads(dot)

    def d_q_of(tile: Tile):
        qs, ks, v_, d = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k), _padded(d_out, tile.q)
        ends = padded(seen, tile.q)
        runs = jnp.stack(runs_of_keys(ends, tile.q, tile.k), axis=-1)
        lse_, dot_ = _padded_rows(lse, tile.q), _padded_rows(dot, tile.q)
        wide = v_.shape[3]
        tables, of_tables = _tables(bias, qs[0].shape[1])
        of_queries = pl.BlockSpec((None, tile.q, None, wide), lambda i, n, b: (b, i, n, 0))
        of_keys = pl.BlockSpec((None, v_.shape[1], None, wide), lambda i, n, b: (b, 0, n // group, 0))
        of_rows = pl.BlockSpec((None, None, tile.q), lambda i, n, b: (b, n, i))
        of_ends = pl.BlockSpec((bands, None, tile.q), lambda i, n, b: (0, b, i))
        d_q = pl.pallas_call(
            functools.partial(kernels.d_q, block=tile.k, **settings),
            grid=(qs[0].shape[1] // tile.q, num_heads, batch),
            in_specs=[
                *[of_queries] * bands, *[of_keys] * bands, of_keys, of_queries, of_rows, of_rows, of_ends, of_ends,
                pl.BlockSpec((bands, None, None, 4), lambda i, n, b: (0, b, i, 0)),
                *of_tables,
            ],
            out_specs=[of_queries] * bands,
            out_shape=[jax.ShapeDtypeStruct(qs[0].shape, dtypes[0])] * bands,
            **_compiled(tile, interpret, "attention_d_q"),
        )(*qs, *ks, v_, d, lse_, dot_, *ends, runs, *tables)  # fmt: skip
        return tuple(x[:, :num_tokens, :, :width] for x in d_q)

    def d_kv_of(tile: Tile):
        qs, ks, v_, d = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k), _padded(d_out, tile.q)
        ends = padded(seen, tile.q)
        runs = jnp.stack(runs_of_queries(ends, v_.shape[1], tile.q, tile.k), axis=-1)
        lse_, dot_ = _padded_rows(lse, tile.q), _padded_rows(dot, tile.q)
        rows, wide = qs[0].shape[1], v_.shape[3]
        tables, of_tables = _tables(bias, rows, group)
        of_queries = pl.BlockSpec((None, rows, group, wide), lambda j, n, b: (b, 0, n, 0))
        of_keys = pl.BlockSpec((None, tile.k, None, wide), lambda j, n, b: (b, j, n, 0))
        of_rows = pl.BlockSpec((None, group, rows), lambda j, n, b: (b, n, 0))
        of_ends = pl.BlockSpec((bands, None, rows), lambda j, n, b: (0, b, 0))
        *d_k, d_v = pl.pallas_call(
            functools.partial(kernels.d_kv, block=tile.q, group=group, **settings),
            grid=(v_.shape[1] // tile.k, num_kv_heads, batch),
            in_specs=[
                *[of_queries] * bands, *[of_keys] * bands, of_keys, of_queries, of_rows, of_rows, of_ends, of_ends,
                pl.BlockSpec((bands, None, None, 4), lambda j, n, b: (0, b, j, 0)),
                *of_tables,
            ],
            out_specs=[of_keys] * (bands + 1),
            out_shape=[jax.ShapeDtypeStruct(v_.shape, dtypes[1])] * (bands + 1),
            **_compiled(tile, interpret, "attention_d_kv"),
        )(*qs, *ks, v_, d, lse_, dot_, *ends, runs, *tables)  # fmt: skip
        return tuple(x[:, :num_keys, :, :width] for x in d_k), d_v[:, :num_keys, :, :width]

    def d_bias_of(tile: Tile):
        block = tile.k
        qs, ks, v_, d = (_padded(x, block) for x in (q, k, v, d_out))
        ends = padded(seen, block)
        runs = jnp.stack(runs_of_keys(ends, block, block)[:2], axis=-1)
        lse_, dot_ = _padded_rows(lse, block), _padded_rows(dot, block)
        rows, wide = qs[0].shape[1], v_.shape[3]
        tables, of_tables = _tables(bias, rows)
        of_queries = pl.BlockSpec((batch, rows, None, wide), lambda e, n: (0, 0, n, 0))
        of_keys = pl.BlockSpec((batch, rows, None, wide), lambda e, n: (0, 0, n // group, 0))
        of_rows = pl.BlockSpec((batch, None, rows), lambda e, n: (0, n, 0))
        of_ends = pl.BlockSpec((bands, batch, rows), lambda e, n: (0, 0, 0))
        d_blocks = pl.pallas_call(
            functools.partial(kernels.d_bias, block=block, **settings),
            grid=(rows // block, num_heads),
            in_specs=[
                *[of_queries] * bands, *[of_keys] * bands, of_keys, of_queries, of_rows, of_rows, of_ends, of_ends,
                pl.BlockSpec(runs.shape, lambda e, n: (0, 0, 0, 0)),
                *of_tables,
            ],
            out_specs=pl.BlockSpec((None, None, block, block), lambda e, n: (n, e, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((num_heads, rows // block, block, block), jnp.float32),
            **_compiled(tile, interpret, "attention_d_bias"),
        )(*qs, *ks, v_, d, lse_, dot_, *ends, runs, *tables)  # fmt: skip
        return _by_distance(d_blocks)[:, :num_tokens]

    d_bias = None if bias is None else d_bias_of(tiles.d_kv)
    return d_q_of(tiles.d_q), *d_kv_of(tiles.d_kv), d_bias


def _padded(x: Any, block: int) -> Any:
    """Returns [B T N H] arrays with T a multiple of the block and H a power of two, as Triton wants them."""
    if isinstance(x, tuple):
        return tuple(_padded(band, block) for band in x)
    width = padded_width(x.shape[-1])
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, width - x.shape[-1])))


def padded_width(head_dim: int) -> int:
    """Returns the width of heads that the kernels compute with."""
    return max(16, pl.next_power_of_2(head_dim))


def _padded_rows(x, block: int):
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block)))


def _tables(bias, rows: int, group: int = 1):
    """Returns the operand and BlockSpec of a table of biases, in base 2, for programs of `group` heads; () without."""
    if bias is None:
        return (), ()
    table = jnp.pad(bias.astype(jnp.float32) * kernels.LOG2_E, ((0, 0), (0, rows - bias.shape[1])))
    return (table,), (pl.BlockSpec((group, rows), lambda i, n, *_: (n, 0)),)


def _by_distance(tiles: Float[Array, "N M L L"]) -> Float[Array, "N D"]:
    """Returns the sums over pairs at each distance: an element of tile m is at distance m L + row - column."""
    length = tiles.shape[-1]
    rows = jnp.pad(tiles[..., ::-1], ((0, 0), (0, 0), (0, 0), (0, length)))
    # Row r moves r to the right, so that a diagonal is a column.
    rows = rows.reshape(*tiles.shape[:2], -1)[..., : length * (2 * length - 1)]
    sums = rows.reshape(*tiles.shape[:2], length, -1).sum(2)
    ahead = jnp.pad(sums[:, 1:, : length - 1], ((0, 0), (0, 1), (1, 0)))
    return (sums[..., length - 1 :] + ahead).reshape(tiles.shape[0], -1)


def _precision(v):
    """float32 stays float32: Triton would round it to TF32."""
    return lax.Precision.HIGHEST if v.dtype == jnp.float32 else None


def _compiled(tile: Tile, interpret: bool, name: str) -> dict[str, Any]:
    parameters = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return dict(interpret=interpret, name=name) | ({} if interpret else dict(compiler_params=parameters))
