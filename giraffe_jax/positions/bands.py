"""Bands: distances that are true in one range and something else in another.

Each band of an Encoding says which pairs of tokens it holds for, and by which positions it rotates their queries and
keys. Its numbers are data: rerope and self_extend with any parameters are one program.
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
    """min(position // group * scale + shift, highest), with position % modulo in place of the position.

    Each number is [], [R] where planes move by different amounts, or in the step [B T 1] or [B T R] where it follows
    each document's own length. Positions are [B T 1].
    """

    scale: Any = 1.0
    shift: Any = 0.0
    group: Any = 1.0
    modulo: Any = math.inf
    highest: Any = math.inf

    def __call__(self, positions: Any) -> Any:
        # By hand, since infinity is no modulus and positions that are interpolated are no whole numbers.
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
    """Returns the encoding with these bands, which rotate keys by `key_pos` where they have no `k_pos` of their own.

    Raises:
      ValueError: an earlier method has set bands: two answers to what a distance is.
    """
    if e.bands:
        raise ValueError("an earlier method already says which distances are seen; only one method may.")
    return e.replace(bands=bands, key_pos=key_pos)


def window_of(e: Encoding, given: Any, share: float) -> Any:
    """Returns a window in tokens: as given, or a share of original_len, rounded down to a token at least."""
    return e.xp.maximum(1, e.xp.floor(share * e.original_len)) if given is None else given
