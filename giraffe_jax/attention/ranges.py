"""Attention over intervals as a Pallas kernel for NVIDIA GPUs, by way of Triton: any number of bands, one softmax.

The kernels are FlashAttention's (Dao, arXiv:2307.08691) with two differences: the bands of a query meet in one online
softmax, and which blocks are visited is read from intervals, whose numbers are data. A mask is evaluated only in blocks
that an interval cuts.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.intervals import Interval, runs_of_keys, runs_of_queries

LOG2_E = math.log2(math.e)
WIDEST = 128  # head; wider ones have no tiles that were run


class Tile(NamedTuple):
    """Tokens of a block of queries and of one of keys, warps that share it, and blocks that are loaded ahead."""

    q: int
    k: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    d_q: Tile
    d_kv: Tile


def tiles(dtype: Any, head_dim: int, *, large: bool = True) -> Tiles:
    """Returns the tiles of each kernel: on an H100 the fastest that were tried (LOG.md).

    Args:
      dtype: of queries, keys and values.
      head_dim: their width, up to WIDEST.
      large: whether a multiprocessor has more than 200 KiB of shared memory, as in an H100 or B200. The tiles for
        others fit in 96 KiB; they have not been run on such a card.
    """
    if jnp.dtype(dtype).itemsize > 2:  # products without matrix units are unrolled: larger tiles compile for minutes
        return Tiles(*[Tile(32, 32, 8, 1) if head_dim > 64 else Tile(32, 32, 4, 2)] * 3)
    if not large:
        return Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))
    if head_dim > 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2))
    return Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def forward(
    q: tuple[Float[Array, "B T N H"], ...],
    k: tuple[Float[Array, "B S K H"], ...],
    v: Float[Array, "B S K H"],
    seen: Interval,
    *,
    tile: Tile,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns attention in the dtype of v and its log-sum-exp in float32; a query that sees no key has 0 and MASKED."""
    (batch, num_tokens, num_heads, width), num_kv_heads = q[0].shape, v.shape[2]
    q, k, v = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k)
    seen = _padded_intervals(seen, tile.q)
    runs = jnp.stack(runs_of_keys(seen, tile.q, tile.k), axis=-1)
    group, bands, rows, keys, wide = num_heads // num_kv_heads, len(q), q[0].shape[1], v.shape[1], v.shape[3]
    of_queries = pl.BlockSpec((None, tile.q, None, wide), lambda i, n, b: (b, i, n, 0))
    of_keys = pl.BlockSpec((None, keys, None, wide), lambda i, n, b: (b, 0, n // group, 0))
    ends = pl.BlockSpec((bands, None, tile.q), lambda i, n, b: (0, b, i))
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, bands=bands, block=tile.k, scale=width**-0.5, precision=_precision(v)),
        grid=(rows // tile.q, num_heads, batch),
        in_specs=[
            *[of_queries] * bands, *[of_keys] * bands, of_keys, ends, ends,
            pl.BlockSpec((bands, None, None, 4), lambda i, n, b: (0, b, i, 0)),
        ],
        out_specs=[of_queries, pl.BlockSpec((None, None, tile.q), lambda i, n, b: (b, n, i))],
        out_shape=[
            jax.ShapeDtypeStruct(q[0].shape, v.dtype),
            jax.ShapeDtypeStruct((batch, num_heads, rows), jnp.float32),
        ],
        **_compiled(tile, interpret, "attention"),
    )(*q, *k, v, *seen, runs)  # fmt: skip
    return out[:, :num_tokens, :, :width], jnp.moveaxis(lse, 1, 2)[:, :num_tokens]


def backward(q, k, v, seen: Interval, lse, dot, d_out, *, tiles: Tiles, interpret: bool = False):
    """Returns the gradients of q, k and v, in their dtypes.

    Args:
      q, k, v, seen: as in `forward`.
      lse: log-sum-exp of the logits over all keys that the queries see, be they among these or not, [B T N].
      dot: sum of d_out * out over a head's width, less the gradient of lse, [B T N].
      d_out: gradient of the output, [B T N H].
    """
    (batch, num_tokens, num_heads, width), num_kv_heads, num_keys = q[0].shape, v.shape[2], v.shape[1]
    group, bands, dtypes = num_heads // num_kv_heads, len(q), (q[0].dtype, v.dtype)
    at_heads = lambda x: jnp.moveaxis(x.astype(jnp.float32), 2, 1)  # noqa: E731
    settings: dict[str, Any] = dict(bands=bands, scale=width**-0.5, precision=_precision(v))
    d_out, lse, dot = d_out.astype(v.dtype), at_heads(lse * LOG2_E), at_heads(dot)

    def d_q_of(tile: Tile):
        qs, ks, v_, d = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k), _padded(d_out, tile.q)
        ends = _padded_intervals(seen, tile.q)
        runs = jnp.stack(runs_of_keys(ends, tile.q, tile.k), axis=-1)
        lse_, dot_ = _padded_rows(lse, tile.q), _padded_rows(dot, tile.q)
        wide = v_.shape[3]
        of_queries = pl.BlockSpec((None, tile.q, None, wide), lambda i, n, b: (b, i, n, 0))
        of_keys = pl.BlockSpec((None, v_.shape[1], None, wide), lambda i, n, b: (b, 0, n // group, 0))
        of_rows = pl.BlockSpec((None, None, tile.q), lambda i, n, b: (b, n, i))
        of_ends = pl.BlockSpec((bands, None, tile.q), lambda i, n, b: (0, b, i))
        found = pl.pallas_call(
            functools.partial(_d_q_kernel, block=tile.k, **settings),
            grid=(qs[0].shape[1] // tile.q, num_heads, batch),
            in_specs=[
                *[of_queries] * bands, *[of_keys] * bands, of_keys, of_queries, of_rows, of_rows, of_ends, of_ends,
                pl.BlockSpec((bands, None, None, 4), lambda i, n, b: (0, b, i, 0)),
            ],
            out_specs=[of_queries] * bands,
            out_shape=[jax.ShapeDtypeStruct(qs[0].shape, dtypes[0])] * bands,
            **_compiled(tile, interpret, "attention_d_q"),
        )(*qs, *ks, v_, d, lse_, dot_, *ends, runs)  # fmt: skip
        return tuple(x[:, :num_tokens, :, :width] for x in found)

    def d_kv_of(tile: Tile):
        qs, ks, v_, d = _padded(q, tile.q), _padded(k, tile.k), _padded(v, tile.k), _padded(d_out, tile.q)
        ends = _padded_intervals(seen, tile.q)
        runs = jnp.stack(runs_of_queries(ends, v_.shape[1], tile.q, tile.k), axis=-1)
        lse_, dot_ = _padded_rows(lse, tile.q), _padded_rows(dot, tile.q)
        rows, wide = qs[0].shape[1], v_.shape[3]
        of_queries = pl.BlockSpec((None, rows, group, wide), lambda j, n, b: (b, 0, n, 0))
        of_keys = pl.BlockSpec((None, tile.k, None, wide), lambda j, n, b: (b, j, n, 0))
        of_rows = pl.BlockSpec((None, group, rows), lambda j, n, b: (b, n, 0))
        of_ends = pl.BlockSpec((bands, None, rows), lambda j, n, b: (0, b, 0))
        *d_k, d_v = pl.pallas_call(
            functools.partial(_d_kv_kernel, block=tile.q, group=group, **settings),
            grid=(v_.shape[1] // tile.k, num_kv_heads, batch),
            in_specs=[
                *[of_queries] * bands, *[of_keys] * bands, of_keys, of_queries, of_rows, of_rows, of_ends, of_ends,
                pl.BlockSpec((bands, None, None, 4), lambda j, n, b: (0, b, j, 0)),
            ],
            out_specs=[of_keys] * (bands + 1),
            out_shape=[jax.ShapeDtypeStruct(v_.shape, dtypes[1])] * (bands + 1),
            **_compiled(tile, interpret, "attention_d_kv"),
        )(*qs, *ks, v_, d, lse_, dot_, *ends, runs)  # fmt: skip
        return tuple(x[:, :num_keys, :, :width] for x in d_k), d_v[:, :num_keys, :, :width]

    return d_q_of(tiles.d_q), *d_kv_of(tiles.d_kv)


# The kernels. Blocks are [queries keys] but in _d_kv_kernel, where they are [keys queries]: what it sums are rows of
# keys. Logits are to base 2, for which a GPU has an instruction.


def _forward_kernel(*refs, bands: int, block: int, scale: float, precision):
    q_refs, k_refs, (v_ref, low_ref, high_ref, runs_ref, out_ref, lse_ref) = _split(refs, bands)
    rows, width = out_ref.shape
    carry = (jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((rows, width)))
    for b in range(bands):
        q, low, high = q_refs[b][...], low_ref[b], high_ref[b]

        def update(j, carry, masked: bool, q=q, low=low, high=high, k_ref=k_refs[b]):
            top, total, out = carry
            at = pl.ds(j * block, block)
            logits = _dot(q, k_ref[at, :].T, precision) * (scale * LOG2_E)
            if masked:
                logits, mask = _cut(logits, j * block, low, high, 1)
            new_top = jnp.maximum(top, logits.max(-1))
            probs = jnp.exp2(logits - new_top[:, None])
            if masked:  # a row that has met no key yet has top = MASKED; its exp(0) must not count
                probs = jnp.where(mask, probs, 0.0)
            decay, v = jnp.exp2(top - new_top), v_ref[at, :]
            out = out * decay[:, None] + _dot(probs.astype(v.dtype), v, precision)
            return new_top, total * decay + probs.sum(-1), out

        carry = _over(runs_ref, b, update, carry)
    top, total, out = carry
    seen = jnp.where(total == 0, 1.0, total)
    out_ref[...] = (out / seen[:, None]).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(total == 0, MASKED, (top + jnp.log2(seen)) / LOG2_E)


def _d_q_kernel(*refs, bands: int, block: int, scale: float, precision):
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, runs_ref, *out_refs) = _split(refs, bands)
    d_out, lse, dot = d_ref[...], lse_ref[...], dot_ref[...]
    for b in range(bands):
        q, low, high = q_refs[b][...], low_ref[b], high_ref[b]

        def update(j, d_q, masked: bool, q=q, low=low, high=high, k_ref=k_refs[b]):
            at = pl.ds(j * block, block)
            k = k_ref[at, :]
            logits = _dot(q, k.T, precision) * (scale * LOG2_E)
            if masked:
                logits, mask = _cut(logits, j * block, low, high, 1)
            probs = jnp.exp2(logits - lse[:, None])
            if masked:
                probs = jnp.where(mask, probs, 0.0)
            d_logits = probs * (_dot(d_out, v_ref[at, :].T, precision) - dot[:, None])
            return d_q + _dot(d_logits.astype(k.dtype), k, precision)

        d_q = _over(runs_ref, b, update, jnp.zeros(q.shape, jnp.float32))
        out_refs[b][...] = (d_q * scale).astype(out_refs[b].dtype)


def _d_kv_kernel(*refs, bands: int, block: int, group: int, scale: float, precision):
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, runs_ref, *out_refs) = _split(refs, bands)
    v = v_ref[...]
    first = pl.program_id(0) * v.shape[0]
    d_v = jnp.zeros(v.shape, jnp.float32)
    for b in range(bands):
        k = k_refs[b][...]

        def update(i, head, carry, masked: bool, b=b, k=k, q_ref=q_refs[b]):
            d_k, d_v = carry
            at = pl.ds(i * block, block)
            q, d_out, lse, dot = q_ref[at, head, :], d_ref[at, head, :], lse_ref[head, at], dot_ref[head, at]
            logits = _dot(k, q.T, precision) * (scale * LOG2_E)
            if masked:
                logits, mask = _cut(logits, first, low_ref[b, at], high_ref[b, at], 0)
            probs = jnp.exp2(logits - lse[None, :])
            if masked:
                probs = jnp.where(mask, probs, 0.0)
            d_v += _dot(probs.astype(d_out.dtype), d_out, precision)
            d_logits = probs * (_dot(v, d_out.T, precision) - dot[None, :])
            return d_k + _dot(d_logits.astype(q.dtype), q, precision), d_v

        d_k, d_v = _over_heads(runs_ref, b, group, update, (jnp.zeros(k.shape, jnp.float32), d_v))
        out_refs[b][...] = (d_k * scale).astype(out_refs[b].dtype)
    out_refs[-1][...] = d_v.astype(out_refs[-1].dtype)


def _split(refs, bands: int):
    return refs[:bands], refs[bands : 2 * bands], refs[2 * bands :]


def _dot(a, b, precision):
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _cut(logits, first_key, low, high, axis: int):
    """Returns the logits, MASKED where the query does not see the key, and the mask; keys lie along `axis`."""
    keys = first_key + lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    low, high = (jnp.expand_dims(x, axis) for x in (low, high))
    mask = (keys >= low) & (keys < high)
    return jnp.where(mask, logits, MASKED), mask


def _over(runs_ref, b: int, update, carry):
    """Returns the carry after update(block, carry, masked) for each block of band b's run."""
    start, stop, full_start, full_stop = (runs_ref[b, n] for n in range(4))
    before, full = full_start - start, full_stop - full_start
    cut = lambda t, carry: update(start + t + jnp.where(t < before, 0, full), carry, True)  # noqa: E731
    carry = lax.fori_loop(0, stop - start - full, cut, carry)
    return lax.fori_loop(full_start, full_stop, lambda j, carry: update(j, carry, False), carry)


def _over_heads(runs_ref, b: int, group: int, update, carry):
    """Returns the carry after update(block, head, carry, masked) for each head of the group and block of the run."""
    start, stop, full_start, full_stop = (runs_ref[b, n] for n in range(4))
    before, full = full_start - start, full_stop - full_start
    some = stop - start - full

    def cut(t, carry):
        head = lax.div(t, some)
        t = t - head * some
        return update(start + t + jnp.where(t < before, 0, full), head, carry, True)

    def whole(t, carry):
        head = lax.div(t, full)
        return update(full_start + t - head * full, head, carry, False)

    carry = lax.fori_loop(0, some * group, cut, carry)
    return lax.fori_loop(0, full * group, whole, carry)


# Around the kernels


def _padded(x: Any, block: int) -> Any:
    """Returns [B T N H] arrays with T a multiple of the block and H a power of two, as Triton wants them."""
    if isinstance(x, tuple):
        return tuple(_padded(each, block) for each in x)
    width = max(16, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, width - x.shape[-1])))


def _padded_rows(x, block: int):
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block)))


def _padded_intervals(seen: Interval, block: int) -> Interval:
    """What is padded sees nothing, where the last query's interval ends."""
    low, high = seen
    ends = jnp.broadcast_to(high[..., -1:], (*high.shape[:-1], -high.shape[-1] % block))
    return Interval(jnp.concatenate([low, ends], -1), jnp.concatenate([high, ends], -1))


def _precision(v):
    """float32 stays float32: Triton would round it to TF32."""
    return lax.Precision.HIGHEST if v.dtype == jnp.float32 else None


def _compiled(tile: Tile, interpret: bool, name: str) -> dict[str, Any]:
    parameters = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return dict(interpret=interpret, name=name) | ({} if interpret else dict(compiler_params=parameters))
