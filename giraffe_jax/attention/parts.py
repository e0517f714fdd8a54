"""Kernels on one device of several that share rows: some of a row's queries, and some or all of its keys.

A device's tokens are two stretches of the row, in order. Of such keys a query still sees one contiguous run.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from giraffe_jax.attention import ranges, tpu
from giraffe_jax.attention.blockwise import backward, forward
from giraffe_jax.attention.intervals import Interval, intervals
from giraffe_jax.attention.places import Place


@runtime_checkable
class Part(Protocol):
    """A kernel; hashable, since it is static in jit."""

    @property
    def query_runs(self) -> int:
        """1 if one call may have both stretches of a device as queries; 2 if each needs a call of its own, whose
        gradients of keys and values the caller sums in float32."""
        ...

    def forward(self, q, k, v, q_place: Place, k_place: Place, bands, bias) -> tuple:
        """Returns the output [B T N H] and its log-sum-exp [B T N].

        Args:
          q, k, v, bands, bias: as in attention.attend.
          q_place: of one stretch of the row, or of two in its order.
          k_place: of two stretches of equal length, in the row's order: all keys, or those of one device.
        """
        ...

    def backward(self, q, k, v, q_place: Place, k_place: Place, bands, bias, out, lse, d_out) -> tuple:
        """Returns the gradients of q, k, v and bias; `out` and `lse` may be of attention over more keys than these."""
        ...


class Blockwise(NamedTuple):
    """Any bands, masks and biases, in plain JAX."""

    block_size: int | None = None

    @property
    def query_runs(self) -> int:
        """See `Part`. A block with queries of two stretches would visit all keys between them."""
        return 2

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        """See `Part`."""
        return forward(self.block_size, q, k, v, bias, (q_place, k_place), bands)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        """See `Part`."""
        places = (q_place, k_place)
        return backward(self.block_size, q, k, v, bias, places, bands, out, lse, d_out, jnp.zeros_like(lse))


class Ranges(NamedTuple):
    """The Pallas kernels for GPUs and TPUs, without biases: they would count distances from a device's first query."""

    tiles: ranges.Tiles | tpu.Tiles
    interpret: bool = False

    @property
    def query_runs(self) -> int:
        """See `Part`."""
        return 1

    @property
    def _kernels(self) -> Any:
        return tpu if isinstance(self.tiles, tpu.Tiles) else ranges

    def forward(self, q, k, v, q_place, k_place, bands, bias):
        """See `Part`; `bias` is ignored."""
        del bias
        seen = _among(intervals(q_place, bands), k_place)
        return self._kernels.forward(q, k, v, seen, tile=self.tiles.forward, interpret=self.interpret)

    def backward(self, q, k, v, q_place, k_place, bands, bias, out, lse, d_out):
        """See `Part`; `bias` is ignored."""
        del bias
        seen = _among(intervals(q_place, bands), k_place)
        dot = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        return self._kernels.backward(q, k, v, seen, lse, dot, d_out, tiles=self.tiles, interpret=self.interpret)


def _among(seen: Interval, k_place: Place) -> Interval:
    """Returns intervals of the row's keys as intervals of the keys that are on this device."""
    length: Any = k_place.index.shape[1] // 2
    first, second = k_place.index[:1, :1], k_place.index[:1, length : length + 1]
    return Interval(*(jnp.clip(x - first, 0, length) + jnp.clip(x - second, 0, length) for x in seen))
