"""Attention over intervals as Pallas kernels for TPUs: any number of bands, one softmax.

As in `ranges`, which blocks are visited is read from intervals, which are traced, and a mask is evaluated only in
blocks that an interval cuts. Here a grid runs over the visits: the runs of blocks are prefetched scalars, by which
index maps choose the block to copy to a core's memory next, and the grid is as long as the longest list of visits.

Compiled for v4, v5e, v5p, v6e and tpu7x without such chips, and run by Pallas' interpreter; not run on a TPU yet.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from giraffe_jax.attention import diagonals
from giraffe_jax.attention import tpu_kernels as kernels
from giraffe_jax.attention.intervals import Interval, Runs, padded, runs_of_keys, runs_of_queries

WIDTHS = (64, 128, 256)  # of heads
DTYPES = ("bfloat16", "float32")
DISTANCES = 3 * 2**18  # in tables of biases, 3 MiB: what fits beside three bands into the 16 MiB of a v4's core


class Tile(NamedTuple):
    """Tokens of a block of queries and of one of keys."""

    q: int
    k: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    backward: Tile


def missing(dtype: Any, head_dim: int, *, table: int = 0, group: int = 1) -> str | None:
    """Returns None if the kernels take heads of this width and dtype, else what they take.

    Args:
      dtype, head_dim: of queries, keys and values.
      table: distances in the table of a bias; 0 without one.
      group: query heads that share a key head.
    """
    if dtype.name not in DTYPES:
        return f"{dtype.name}; on a TPU it takes {' and '.join(DTYPES)}"
    if head_dim not in WIDTHS:
        return f"heads of {head_dim}; on a TPU it takes 64, 128 and 256"
    most = DISTANCES // (group + 2)  # gradients of a group's tables, and two buffers of one head's table
    if table > most:
        return f"a bias on logits of {table:,} tokens; on a TPU it takes {most:,} with {group} heads on a key head"
    return None


def tiles(dtype: Any, head_dim: int, tokens: int) -> Tiles:
    """Returns the tiles of each kernel: chosen to fit the core's memory, not timed.

    Args:
      dtype: of queries, keys and values.
      head_dim: their width.
      tokens: of a row; it is padded to whole blocks, which shrink where more than an eighth would be padding.
    """
    sizes = (1024, 512, 256, 128)
    if jnp.dtype(dtype).itemsize > 2:  # a float32 matmul is six of bfloat16, all unrolled
        sizes = sizes[2:]
    elif head_dim > 128:
        sizes = sizes[1:]
    # Also in the backward pass many keys a block: what a visit reads and writes of d_q does not grow with them.
    large = next((size for size in sizes if -tokens % size <= tokens // 8), sizes[-1])
    small = min(large, 512)
    return Tiles(Tile(small, large), Tile(small, large))


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
    num_tokens, group, bands = q[0].shape[1], q[0].shape[2] // v.shape[2], len(q)
    qs, ks, v = _by_heads(q, tile.q), _by_heads(k, tile.k), _by_heads(v, tile.k)
    (batch, num_heads, rows, width), ends = qs[0].shape, padded(seen, tile.q)
    prefetched, steps, visits = _visits(runs_of_keys(ends, tile.q, tile.k), v.shape[2] // tile.k)
    specs = _of_one_query_block(visits, group, tile, width)
    tables, of_tables = _tables(bias, tile, lambda r, n, i, s, runs: n)
    out, lse = pl.pallas_call(
        functools.partial(kernels.forward, visits=visits, scale=width**-0.5, precision=_precision(v)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, num_heads, rows // tile.q, steps),
            in_specs=[*[specs["q"]] * bands, *specs["k"], specs["v"], specs["ends"], specs["ends"], *of_tables],
            out_specs=[specs["q"], specs["rows"]],
            scratch_shapes=_scratch(*[(1, tile.q)] * 2, (width, tile.q)),
        ),
        out_shape=[
            jax.ShapeDtypeStruct(qs[0].shape, v.dtype),
            jax.ShapeDtypeStruct((batch, num_heads, 1, rows), jnp.float32),
        ],
        **_compiled(3, 4, interpret, "attention"),
    )(prefetched, *qs, *ks, v, *_ends(ends), *tables)
    return jnp.moveaxis(out, 1, 2)[:, :num_tokens], jnp.moveaxis(lse[:, :, 0], 1, 2)[:, :num_tokens]


def backward(q, k, v, seen: Interval, lse, dot, d_out, *, tiles: Tiles, bias=None, interpret: Any = False):
    """Returns the gradients of q, k and v, in their dtypes, and that of bias in float32, or None.

    Args:
      q, k, v, seen, bias: as in `forward`.
      lse: log-sum-exp of the logits over all keys that the queries see, also those that are not in k, [B T N].
      dot: sum of d_out * out over a head's width, less the gradient of lse, [B T N].
      d_out: gradient of the output, [B T N H].
      interpret: as plain JAX (True), or with a chip's memory and copies simulated (pltpu.InterpretParams).
    """
    num_tokens, num_keys, tile, bands = q[0].shape[1], v.shape[1], tiles.backward, len(q)
    qs, ks, of_v, of_out = _by_heads(q, tile.q), _by_heads(k, tile.k), _by_heads(v, tile.k), _by_heads(d_out, tile.q)
    of_queries, ends = [_rows_by_heads(x, tile.q) for x in (lse * kernels.LOG2_E, dot)], padded(seen, tile.q)
    (batch, num_heads, rows, width), (_, num_kv_heads, keys, _) = of_out.shape, of_v.shape
    group, blocks = num_heads // num_kv_heads, rows // tile.q
    prefetched, steps, visits = _visits(runs_of_queries(ends, keys, tile.q, tile.k), blocks)
    specs = _of_one_key_block(visits, group, tile, width)
    tables, of_tables = _tables(bias, tile, lambda r, n, j, g, s, runs: n * group + g)
    once = pl.Buffered(1)  # one buffer: there is no room for two of a whole row
    of_sums = [
        pl.BlockSpec((None, group, 1, x.shape[2]), lambda r, n, j, g, s, runs: (r, n, 0, 0), pipeline_mode=once)
        for x in tables
    ]
    # d_q is summed in HBM, since d_k and d_v would be twice as much to read and write. Its blocks are contiguous.
    sums = jnp.zeros((bands, batch, num_heads, blocks, width, tile.q), jnp.float32)
    settings: dict[str, Any] = dict(scale=width**-0.5, precision=_precision(v), biased=bool(tables))
    gradients = pl.pallas_call(
        functools.partial(kernels.backward, visits=visits, **settings),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, num_kv_heads, keys // tile.k, group, steps),
            in_specs=[
                *specs["q"], *[specs["k"]] * bands, specs["k"], specs["d_out"],
                specs["rows"], specs["rows"], specs["ends"], specs["ends"], specs["d_q"], *of_tables,
            ],
            out_specs=[*[specs["k"]] * (bands + 1), specs["d_q"], *of_sums],
            scratch_shapes=[
                *_scratch(*[(tile.k, width)] * (bands + 1), *[(width, tile.q)] * 2),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=[
            *[jax.ShapeDtypeStruct(of_v.shape, v.dtype)] * (bands + 1), sums,
            *[jax.ShapeDtypeStruct((batch, *x.shape), jnp.float32) for x in tables],
        ],
        input_output_aliases={2 * bands + 7: bands + 1},
        **_compiled(2, 5, interpret, "attention_backward"),
    )(prefetched, *qs, *ks, of_v, of_out.astype(v.dtype), *of_queries, *_ends(ends), sums, *tables)  # fmt: skip
    *d_k, d_v = (jnp.moveaxis(x, 1, 2)[:, :num_keys] for x in gradients[: bands + 1])
    d_bias = None if bias is None else diagonals.unpadded(gradients[-1].sum(0), tile.k, tile.q, bias.shape[1])
    d_q = jnp.moveaxis((gradients[bands + 1] * width**-0.5).astype(q[0].dtype), (3, 5), (2, 3))  # [n B M block N H]
    return tuple(d_q.reshape(bands, batch, rows, num_heads, width)[:, :, :num_tokens]), tuple(d_k), d_v, d_bias


def _visits(runs: Runs, blocks: int) -> tuple[Any, Any, kernels.Visits]:
    """Returns the runs as the kernels read them, the steps of the longest list of visits, and their static shape.

    Args:
      runs: one for each block of the grid.
      blocks: number of blocks that may be visited.
    """
    count = runs.stop - runs.start
    start = jnp.minimum(runs.start, blocks - 1)  # an empty run may start after the last block, but its start is loaded
    flat = jnp.stack([start, count, runs.full_start, runs.full_stop]).reshape(-1)  # a scalar core pads what is not 1D
    return flat, jnp.maximum(count.sum(0).max(), 1), kernels.Visits(*count.shape)


def _of_one_query_block(visits: kernels.Visits, group: int, tile: Tile, width: int) -> dict[str, Any]:
    """Returns the BlockSpecs of a grid (row, query head, block of queries, visit)."""
    bands, wide = range(visits.bands), (None, None, tile.k, width)

    def of_keys(block):
        return pl.BlockSpec(wide, lambda r, n, i, s, runs: (r, lax.div(n, group), block(runs, r, i, s), 0))

    return dict(
        q=pl.BlockSpec((None, None, tile.q, width), lambda r, n, i, s, runs: (r, n, i, 0)),
        k=[of_keys(functools.partial(visits.of_band, b)) for b in bands],
        v=of_keys(visits.of_all),
        rows=pl.BlockSpec((None, None, 1, tile.q), lambda r, n, i, s, runs: (r, n, 0, i)),
        ends=pl.BlockSpec((visits.bands, None, 1, tile.q), lambda r, n, i, s, runs: (0, r, 0, i)),
    )


def _of_one_key_block(visits: kernels.Visits, group: int, tile: Tile, width: int) -> dict[str, Any]:
    """Returns the BlockSpecs of a grid (row, key head, block of keys, query head of its group, visit)."""
    bands, wide = range(visits.bands), (None, None, tile.q, width)

    def of_queries(block):
        return pl.BlockSpec(wide, lambda r, n, j, g, s, runs: (r, n * group + g, block(runs, r, j, s), 0))

    return dict(
        q=[of_queries(functools.partial(visits.of_band, b)) for b in bands],
        d_out=of_queries(visits.of_all),
        k=pl.BlockSpec((None, None, tile.k, width), lambda r, n, j, g, s, runs: (r, n, j, 0)),
        d_q=pl.BlockSpec(memory_space=pl.ANY),
        rows=pl.BlockSpec(
            (None, None, 1, tile.q), lambda r, n, j, g, s, runs: (r, n * group + g, 0, visits.of_all(runs, r, j, s))
        ),
        ends=pl.BlockSpec(
            (visits.bands, None, 1, tile.q), lambda r, n, j, g, s, runs: (0, r, 0, visits.of_all(runs, r, j, s))
        ),
    )


def _tables(bias, tile: Tile, head) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Returns the operand and BlockSpec of a table of biases, in base 2, for the `head` of a grid step; () without."""
    if bias is None:
        return (), ()
    table = diagonals.padded(bias.astype(jnp.float32) * kernels.LOG2_E, tile.k, tile.q)
    return (table,), (pl.BlockSpec((None, 1, table.shape[2]), lambda *step: (head(*step), 0, 0)),)


def _by_heads(x: Any, block: int) -> Any:
    """Returns [B T N H] arrays as [B N T H], T padded to a multiple of the block."""
    if isinstance(x, tuple):
        return tuple(_by_heads(band, block) for band in x)
    return jnp.pad(jnp.moveaxis(x, 2, 1), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))


def _rows_by_heads(x: Float[Array, "B T N"], block: int) -> Float[Array, "B N 1 M"]:
    rows = jnp.moveaxis(x.astype(jnp.float32), 2, 1)[:, :, None]
    return jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, -x.shape[1] % block)))


def _ends(seen: Interval) -> tuple[Any, Any]:
    return seen.low[:, :, None], seen.high[:, :, None]


def _scratch(*shapes: tuple[int, int]) -> list[Any]:
    return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]


def _precision(v):
    """Returns full precision for float32, which a TPU would round to bfloat16, and the default for bfloat16."""
    return lax.Precision.HIGHEST if v.dtype == jnp.float32 else lax.Precision.DEFAULT


def _compiled(parallel: int, axes: int, interpret: Any, name: str) -> dict[str, Any]:
    """The first `parallel` axes may run in any order and on both cores of a chip; the others, over which the kernels
    sum, run in order."""
    parameters = pltpu.CompilerParams(dimension_semantics=("parallel",) * parallel + ("arbitrary",) * (axes - parallel))
    return dict(interpret=interpret, name=name) | ({} if interpret is True else dict(compiler_params=parameters))
