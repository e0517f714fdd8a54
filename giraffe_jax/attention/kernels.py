"""The bodies of `ranges`' kernels: what one program reads and writes.

Blocks are [queries keys], except in `d_kv`, which sums rows of keys: there they are [keys queries]. Logits and biases
are in base 2, since GPUs have an instruction for exp2. A kernel's refs are its operands, then its results. The operands
are one q and one k per band, v, the queries' d_out, log-sum-exp and dot (backward only), the ends of the intervals,
their runs of blocks, and maybe a table of biases.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from giraffe_jax.attention.dense import MASKED

LOG2_E = math.log2(math.e)


def forward(*refs, bands: int, block: int, scale: float, precision):
    """Writes the output and the log-sum-exp of one block of queries of one head."""
    q_refs, k_refs, (v_ref, low_ref, high_ref, runs_ref, *table_ref, out_ref, lse_ref) = _split(refs, bands)
    rows, width = out_ref.shape
    first = pl.program_id(0) * rows
    carry = (jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((rows, width)))
    for b in range(bands):
        q, low, high = q_refs[b][...], low_ref[b], high_ref[b]

        def update(j, carry, masked: bool, q=q, low=low, high=high, k_ref=k_refs[b]):
            top, total, out = carry
            at = pl.ds(j * block, block)
            logits = _dot(q, k_ref[at, :].T, precision) * (scale * LOG2_E)
            logits = _biased(logits, table_ref, first, j * block, 1)
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


def d_q(*refs, bands: int, block: int, scale: float, precision):
    """Writes the gradients of one block of queries of one head, one per band."""
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, runs_ref, *rest) = _split(refs, bands)
    table_ref, out_refs = rest[:-bands], rest[-bands:]
    d_out, lse, dot = d_ref[...], lse_ref[...], dot_ref[...]
    first = pl.program_id(0) * d_out.shape[0]
    for b in range(bands):
        q, low, high = q_refs[b][...], low_ref[b], high_ref[b]

        def update(j, d_q, masked: bool, q=q, low=low, high=high, k_ref=k_refs[b]):
            at = pl.ds(j * block, block)
            k = k_ref[at, :]
            logits = _dot(q, k.T, precision) * (scale * LOG2_E)
            logits = _biased(logits, table_ref, first, j * block, 1)
            if masked:
                logits, mask = _cut(logits, j * block, low, high, 1)
            probs = jnp.exp2(logits - lse[:, None])
            if masked:
                probs = jnp.where(mask, probs, 0.0)
            d_logits = probs * (_dot(d_out, v_ref[at, :].T, precision) - dot[:, None])
            return d_q + _dot(d_logits.astype(k.dtype), k, precision)

        d_q = _over(runs_ref, b, update, jnp.zeros(q.shape, jnp.float32))
        out_refs[b][...] = (d_q * scale).astype(out_refs[b].dtype)


def d_kv(*refs, bands: int, block: int, group: int, scale: float, precision):
    """Writes the gradients of one block of keys, one per band, and of its values, summed over a key head's queries."""
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, runs_ref, *rest) = _split(refs, bands)
    table_ref, out_refs = rest[: -bands - 1], rest[-bands - 1 :]
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
            logits = _biased(logits, table_ref, i * block, first, 0, head)
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


def d_bias(*refs, bands: int, block: int, scale: float, precision):
    """Writes the gradient of a head's logits, [block block], summed over all block pairs that are equally far apart."""
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, runs_ref, table_ref, out_ref) = _split(
        refs, bands
    )
    apart = pl.program_id(0)  # blocks between that of the queries and that of the keys
    batch, rows = v_ref.shape[:2]
    count = rows // block - apart
    bias = _biased(jnp.zeros((block, block)), [table_ref], apart * block, 0, 1)

    def add(t, total):
        row = lax.div(t, count)
        j = t - row * count
        i = j + apart
        queries, keys = pl.ds(i * block, block), pl.ds(j * block, block)

        def of_band(b: int, total):
            logits = _dot(q_refs[b][row, queries, :], k_refs[b][row, keys, :].T, precision) * (scale * LOG2_E) + bias
            logits, mask = _cut(logits, j * block, low_ref[b, row, queries], high_ref[b, row, queries], 1)
            probs = jnp.where(mask, jnp.exp2(logits - lse_ref[row, queries][:, None]), 0.0)
            d_probs = _dot(d_ref[row, queries, :], v_ref[row, keys, :].T, precision)
            return total + probs * (d_probs - dot_ref[row, queries][:, None])

        for b in range(bands):
            seen = (runs_ref[b, row, i, 0] <= j) & (j < runs_ref[b, row, i, 1])
            total = lax.cond(seen, functools.partial(of_band, b), lambda total: total, total)
        return total

    out_ref[...] = lax.fori_loop(0, batch * count, add, jnp.zeros((block, block)))


def _split(refs, bands: int):
    return refs[:bands], refs[bands : 2 * bands], refs[2 * bands :]


def _dot(a, b, precision):
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _biased(logits, table_ref, query, key, axis: int, head=0):
    """Returns the logits plus the head's bias, where there is a table; the block's first query and key are at these
    indices, and keys lie along `axis`."""
    if not table_ref:
        return logits
    queries = query + lax.broadcasted_iota(jnp.int32, logits.shape, 1 - axis)
    keys = key + lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    return logits + table_ref[0][head, jnp.maximum(queries - keys, 0)]


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
    num_cut = stop - start - full

    def cut(t, carry):
        head = lax.div(t, num_cut)
        t = t - head * num_cut
        return update(start + t + jnp.where(t < before, 0, full), head, carry, True)

    def whole(t, carry):
        head = lax.div(t, full)
        return update(full_start + t - head * full, head, carry, False)

    carry = lax.fori_loop(0, num_cut * group, cut, carry)
    return lax.fori_loop(0, full * group, whole, carry)
