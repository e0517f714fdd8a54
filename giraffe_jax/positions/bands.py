"""Bands: ranges of query-key distances, each rotated by its own positions.

Each band of an Encoding says which query-key pairs it covers, and by which positions their queries and keys are
rotated. Its numbers are traced, so rerope and self_extend share one compilation, whatever their parameters.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax.positions.encoding import Band, Encoding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Line:
    """A position map: min(p // group * scale + shift, highest) with p = position % modulo; positions are [B T 1].

    Each number is a scalar [], or [R] to move each rotary plane by its own amount. Inside the step it may also be
    [B T 1] or [B T R], so that it depends on each document's length.
    """

    scale: Any = 1.0
    shift: Any = 0.0
    group: Any = 1.0
    modulo: Any = math.inf
    highest: Any = math.inf

    def __call__(self, positions: Any) -> Any:
        """Returns the mapped positions, [B T 1] or [B T R]."""
        # An infinite modulo and group 1 must leave positions as they are: interpolated ones are not whole numbers.
        p = jnp.where(jnp.isinf(self.modulo), positions, jnp.mod(positions, self.modulo))
        p = jnp.where(self.group > 1, jnp.floor(p / self.group), p)
        return jnp.minimum(p * self.scale + self.shift, self.highest)


def near(window: Any) -> Band:
    """Returns the band of pairs less than `window` tokens apart, at their true distance."""
    return Band(high=window)


def far(window: Any, q_pos: Line, k_pos: Line | None = None, keys: Any = math.inf) -> Band:
    """Returns the band of pairs `window` tokens apart or more; of those, keys with an index below `keys`."""
    return Band(low=window, keys=keys, q_pos=q_pos, k_pos=k_pos)


def with_bands(e: Encoding, *bands: Band, key_pos: Any = None) -> Encoding:
    """Returns the encoding with these bands; bands without a `k_pos` rotate keys by `key_pos`.

    Raises:
      ValueError: an earlier method has set bands already.
    """
    if e.bands:
        raise ValueError("an earlier method already says which distances are seen; only one method may.")
    return e.replace(bands=bands, key_pos=key_pos)


def window_of(e: Encoding, window: Any, share: float) -> Any:
    """Returns a window in tokens: `window`, or if that is None `share` of original_len, rounded down but at least 1."""
    return e.xp.maximum(1, e.xp.floor(share * e.original_len)) if window is None else window
