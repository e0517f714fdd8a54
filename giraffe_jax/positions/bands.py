"""Bands: pieces that methods build distance-dependent attention from.

A band says which pairs of tokens it holds for, and by which positions it rotates their queries and keys. Masks and
positions are frozen dataclasses, so that encodings of equal parameters compare equal and share one compilation.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from giraffe_jax.positions.encoding import CAUSAL, Band, Encoding


@dataclasses.dataclass(frozen=True)
class Apart:
    """Holds where low <= i // chunk - j // chunk < high, and j < keys."""

    low: int = 0
    high: float = math.inf
    chunk: int = 1
    keys: float = math.inf

    def __call__(self, i, j, length):
        del length
        apart = i - j if self.chunk == 1 else i // self.chunk - j // self.chunk
        held = apart >= self.low
        if self.high < math.inf:
            held &= apart < self.high
        return held if self.keys == math.inf else held & (j < self.keys)

    def blocks(self, i, j, length):
        """Returns whether the mask can hold for any pair, and whether it must for all, of indices between (low, high)
        corners i and j."""
        del length
        near = i[0] // self.chunk - j[1] // self.chunk
        far = i[1] // self.chunk - j[0] // self.chunk
        some = (far >= self.low) & (near < self.high) & (j[0] < self.keys)
        return some, (near >= self.low) & (far < self.high) & (j[1] < self.keys)


@dataclasses.dataclass(frozen=True)
class Line:
    """min(position // group * scale + shift, highest), with position % modulo in place of the position if given."""

    scale: float = 1.0
    shift: float = 0.0
    group: int = 1
    modulo: int = 0
    highest: float = math.inf

    def __call__(self, positions: Any, length: Any) -> Any:
        del length
        p = positions % self.modulo if self.modulo else positions
        p = jnp.floor(p / self.group) if self.group > 1 else p
        p = p * self.scale + self.shift
        return p if self.highest == math.inf else jnp.minimum(p, self.highest)


SAME = CAUSAL.q_pos


def near(window: int) -> Band:
    """Returns the band of pairs less than `window` tokens apart, at their true distance."""
    return Band(Apart(0, window), SAME, SAME)


def far(window: int, q_pos: Line, k_pos: Line | Callable = SAME, keys: float = math.inf) -> Band:
    """Returns the band of pairs `window` tokens apart or more; of those, keys with an index below `keys`."""
    return Band(Apart(window, keys=keys), q_pos, k_pos)


def with_bands(e: Encoding, *bands: Band) -> Encoding:
    """Returns the encoding with these bands.

    Raises:
      ValueError: an earlier method has set bands: two answers to what a distance is.
    """
    if e.bands != (CAUSAL,):
        raise ValueError("an earlier method already says which distances are seen; only one method may.")
    return e.replace(bands=bands)


def window_of(e: Encoding, given: int | None, share: float) -> int:
    """Returns a window in tokens: as given, or a share of original_len, which must be known while binding."""
    return max(1, int(share * float(e.original_len))) if given is None else given
