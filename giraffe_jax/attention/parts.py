"""Kernels on one device of several that share rows: some of a row's queries, and some or all of its keys.

A device's tokens are two stretches of the row, in order. Of any such keys a query sees one run, as it does of all.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from giraffe_jax.attention import ranges, tpu
from giraffe_jax.attention.blockwise import backward, forward
from giraffe_jax.attention.intervals import Interval, intervals
from giraffe_jax.attention.places import Place


@runtime_checkable
class Part(Protocol):
    """A kernel; hashable."""

    # 1: its queries may be both stretches of a device at once; 2: each is a call of its own, whose gradients of keys
    # and values are summed in float32 outside it.
    @property
    def query_runs(self) -> int: ...

    def forward(self, q, k, v, q_place: Place, k_place: Place, bands, bias) -> tuple:
        """Returns the output [B T N H] and its log-sum-exp [B T N].

        Args:
          q, k, v, bands, bias: as in attention.attend.
          q_place: of one stretch of the row, or of two in its order.
          k_place: of two stretches of equal length, in the row's order: all keys, or those of one device.
        """
        ...

    def backward(self, q, k, v, q_place: Place, k_place: Place, bands, bias, out, lse, d_out) -> tuple:
        """Returns the gradients of q, k, v and bias; `out` and `lse` may be of more keys than these."""
        ...


class Blockwise(NamedTuple):
    """Any bands, masks and biases, in plain JAX."""

    block_size: int | None = None

    @property
    def query_runs(self) -> int:
        return 2  # it reads which blocks to visit off the first and last query of each

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        return forward(self.block_size, q, k, v, bias, (q_place, k_place), bands)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        places = (q_place, k_place)
        return backward(self.block_size, q, k, v, bias, places, bands, out, lse, d_out, jnp.zeros_like(lse))


class Ranges(NamedTuple):
    """The Pallas kernels for GPUs and TPUs; biases count from the first of their queries, so here they have none."""

    tiles: ranges.Tiles | tpu.Tiles
    interpret: bool = False

    @property
    def query_runs(self) -> int:
        return 1

    @property
    def _kernels(self) -> Any:
        return tpu if isinstance(self.tiles, tpu.Tiles) else ranges

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        del bias
        seen = _among(intervals(q_place, bands), k_place)
        return self._kernels.forward(q, k, v, seen, tile=self.tiles.forward, interpret=self.interpret)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        del bias
        seen = _among(intervals(q_place, bands), k_place)
        dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        return self._kernels.backward(q, k, v, seen, lse, dot, d_out, tiles=self.tiles, interpret=self.interpret)


def _among(seen: Interval, k_place: Place) -> Interval:
    """Returns the same intervals, of the row's keys, as intervals of the keys that are here."""
    length: Any = k_place.index.shape[1] // 2
    first, second = k_place.index[:1, :1], k_place.index[:1, length : length + 1]
    return Interval(*(jnp.clip(x - first, 0, length) + jnp.clip(x - second, 0, length) for x in seen))
