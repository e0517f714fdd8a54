"""The bodies of `tpu`'s kernels: what one step of a grid reads, adds to the sums of the steps before it, and writes.

Logits are [keys queries] in all of them, so that what belongs to a query (its interval, log-sum-exp and so on) is a row
that the vector unit broadcasts over sublanes, and sums over keys need no exchange between lanes. They are in base 2.

A block's steps are its visits to the blocks of its runs, one band after the other. The grid has as many steps as the
block with the most visits needs; in the steps after a block's last visit nothing is done. A kernel's refs are the runs,
its operands (one q and one k per band, v, what it needs of the queries, the intervals' ends, maybe a head's table of
biases), its results, and its scratch memory.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from giraffe_jax.attention import diagonals
from giraffe_jax.attention.dense import MASKED

LOG2_E = math.log2(math.e)
NONE = -1  # no block


class Visits(NamedTuple):
    """How to read runs of n bands, flattened from int32 [4 n B M]: the first block, the number of blocks, and start and
    stop of those that need no mask."""

    bands: int
    batch: int
    blocks: int

    def band(self, b: int, ref, row, i) -> tuple[Any, Any, Any, Any]:
        """Returns the run of band b for a row's block i."""
        at = (b * self.batch + row) * self.blocks + i
        size = self.bands * self.batch * self.blocks
        return ref[at], ref[size + at], ref[2 * size + at], ref[3 * size + at]

    def of_band(self, b: int, ref, row, i, step):
        """Returns the block of band b that is loaded at a step: before its visits the first, after them the last."""
        step -= sum(self.band(a, ref, row, i)[1] for a in range(b))
        start, count, *_ = self.band(b, ref, row, i)
        return start + jnp.clip(step, 0, jnp.maximum(count - 1, 0))

    def of_all(self, ref, row, i, step):
        """Returns the block that is visited at a step, whatever the band; after the last visit it stays."""
        block, before = self.of_band(0, ref, row, i, step), 0
        for b in range(1, self.bands):
            before += self.band(b - 1, ref, row, i)[1]
            reached = (step >= before) & (self.band(b, ref, row, i)[1] > 0)
            block = jnp.where(reached, self.of_band(b, ref, row, i, step), block)
        return block

    def each(self, ref, row, i, step, update) -> None:
        """Calls update(b, block, masked) for the one visit of this step, if it has one."""
        before = 0
        for b in range(self.bands):
            start, count, full_start, full_stop = self.band(b, ref, row, i)
            block = start + step - before
            visited = (step >= before) & (step < before + count)
            full = (block >= full_start) & (block < full_stop)
            pl.when(visited & full)(lambda b=b, block=block: update(b, block, False))
            pl.when(visited & ~full)(lambda b=b, block=block: update(b, block, True))
            before += count


def forward(runs_ref, *refs, visits: Visits, scale: float, precision):
    """Sums over one block of queries' visits; the last step writes its output and log-sum-exp."""
    q_refs, k_refs, (v_ref, low_ref, high_ref, *table_ref, out_ref, lse_ref, top_ref, total_ref, sum_ref) = _split(
        refs, visits
    )
    row, i, step, steps = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.num_programs(3)

    @pl.when(step == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def update(b: int, j, masked: bool):
        logits = _dot(k_refs[b][...], q_refs[b][...], 1, 1, precision) * (scale * LOG2_E)
        logits = _biased(logits, table_ref, i, j)
        if masked:
            mask = _mask(logits, j, low_ref[b], high_ref[b])
            logits = jnp.where(mask, logits, MASKED)
        top = jnp.maximum(top_ref[...], logits.max(0, keepdims=True))
        probs = jnp.exp2(logits - top)
        if masked:  # a query that has met no key yet has top = MASKED; its exp(0) must not count
            probs = jnp.where(mask, probs, 0.0)
        decay, v = jnp.exp2(top_ref[...] - top), v_ref[...]
        top_ref[...] = top
        total_ref[...] = total_ref[...] * decay + probs.sum(0, keepdims=True)
        sum_ref[...] = sum_ref[...] * decay + _dot(v, probs.astype(v.dtype), 0, 0, precision)

    visits.each(runs_ref, row, i, step, update)

    @pl.when(step == steps - 1)
    def _():
        total = total_ref[...]
        seen = jnp.where(total == 0, 1.0, total)
        out_ref[...] = (sum_ref[...] / seen).T.astype(out_ref.dtype)
        lse_ref[...] = jnp.where(total == 0, MASKED, (top_ref[...] + jnp.log2(seen)) / LOG2_E)


def backward(runs_ref, *refs, visits: Visits, scale: float, precision, biased: bool):
    """Sums d_k and d_v of one block of keys in the core's own memory, d_q in HBM: [n B N M H block], zeros at first.

    The gradients of the tables of a key head's queries stay in the core's memory for all blocks of keys. Each visit
    reads its block of d_q during its matmuls, adds to it, and writes it during the matmuls of the next visit.
    """
    q_refs, k_refs, (v_ref, d_ref, lse_ref, dot_ref, low_ref, high_ref, _, *rest) = _split(refs, visits)
    table_ref, rest = rest[:biased], rest[biased:]
    out_refs, d_q_ref, rest = rest[: visits.bands + 1], rest[visits.bands + 1], rest[visits.bands + 2 :]
    d_table_ref, sum_refs, (read_ref, write_ref, written_ref, done) = rest[:biased], rest[biased:-4], rest[-4:]
    row, kv_head, j, head, step = (pl.program_id(axis) for axis in range(5))
    blocks, heads, steps = pl.num_programs(2), pl.num_programs(3), pl.num_programs(4)

    @pl.when((j == 0) & (head == 0) & (step == 0))
    def _():
        written_ref[0] = NONE
        for ref in d_table_ref:
            ref[...] = jnp.zeros_like(ref)

    @pl.when((head == 0) & (step == 0))
    def _():
        for ref in sum_refs:
            ref[...] = jnp.zeros_like(ref)

    def update(b: int, i, masked: bool):
        block = d_q_ref.at[b, row, kv_head * heads + head, i]
        read = pltpu.make_async_copy(block, read_ref, done.at[0])
        write = pltpu.make_async_copy(write_ref, block, done.at[1])
        this, before = (b * heads + head) * d_q_ref.shape[3] + i, written_ref[0]
        written_ref[0] = this
        pl.when(before == this)(write.wait)  # one block's last visit may be the next one's first
        read.start()
        q, k, d_out = q_refs[b][...], k_refs[b][...], d_ref[...]
        logits = _biased(_dot(k, q, 1, 1, precision) * (scale * LOG2_E), table_ref, i, j)
        probs = jnp.exp2(logits - lse_ref[...])
        if masked:
            probs = jnp.where(_mask(probs, j, low_ref[b], high_ref[b]), probs, 0.0)
        sum_refs[-1][...] += _dot(probs.astype(d_out.dtype), d_out, 1, 0, precision)
        d_logits = probs * (_dot(v_ref[...], d_out, 1, 1, precision) - dot_ref[...])
        for ref in d_table_ref:
            ref[head, :, diagonals.strip(i, j, *d_logits.shape)] += diagonals.gathered(d_logits)
        d_logits = d_logits.astype(q.dtype)
        sum_refs[b][...] += _dot(d_logits, q, 1, 0, precision)
        d_q = _dot(k, d_logits, 0, 0, precision)
        read.wait()
        pl.when((before != NONE) & (before != this))(write.wait)  # for the block before, whose copy is as long
        write_ref[...] = read_ref[...] + d_q
        write.start()

    visits.each(runs_ref, row, j, step, update)

    @pl.when((head == heads - 1) & (step == steps - 1))
    def _():
        for b, (out_ref, ref) in enumerate(zip(out_refs, sum_refs, strict=True)):
            out_ref[...] = (ref[...] * (scale if b < visits.bands else 1.0)).astype(out_ref.dtype)

    @pl.when((j == blocks - 1) & (head == heads - 1) & (step == steps - 1) & (written_ref[0] != NONE))
    def _():
        pltpu.make_async_copy(write_ref, d_q_ref.at[0, row, kv_head, 0], done.at[1]).wait()


def _split(refs, visits: Visits):
    n = visits.bands
    return refs[:n], refs[n : 2 * n], refs[2 * n :]


def _dot(a, b, axis_of_a: int, axis_of_b: int, precision):
    """Returns the product of two matrices, summed over one axis of each, in float32."""
    dimensions = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _biased(logits, table_ref, i, j):
    """Returns the logits of block i of queries and block j of keys plus their bias, where there is a table."""
    for ref in table_ref:
        logits += diagonals.spread(ref[:, diagonals.strip(i, j, *logits.shape)], *logits.shape)
    return logits


def _mask(logits, j, low, high):
    """Returns which of block j's keys are in the queries' intervals."""
    keys = j * logits.shape[0] + lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return (keys >= low) & (keys < high)
