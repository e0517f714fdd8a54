"""Values that differ between layers, in a pattern that repeats."""

from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax.positions.encoding import Band, Encoding


def alternate(e: Encoding, every: int, value, other, *, axes: int = 0):
    """Returns `value`, or with `every` > 0 values stacked over layers: `other` in layers every, 2 every, ...

    Args:
      e: its num_layers is read if layers differ.
      every: layers are counted from 1; 0 for no pattern.
      value, other: the value of one layer, or values already stacked over layers.
      axes: number of axes of one layer's value.

    Raises:
      ValueError: a pattern is asked for, but the number of layers is unknown, or `mixed` came before.
    """
    if not every:
        return value
    if axes and e.limits is not None:
        raise ValueError("after mixed, which has several sets of frequencies: put it before, or into each choice.")
    if e.num_layers is None:
        raise ValueError("a pattern of layers needs to know how many there are: bind(..., num_layers=L).")
    last = e.xp.arange(1, e.num_layers + 1) % every == 0
    return e.xp.where(last.reshape(-1, *(1,) * axes), other, value)


LIMITS = ("low", "high", "chunk", "keys", "also")  # of a Band, each [] or [L]


def limits_differ(bands: tuple[Band, ...]) -> bool:
    """Returns whether the limits of bands differ between layers."""
    return any(jnp.ndim(x) for band in bands for name in LIMITS for x in jax.tree.leaves(getattr(band, name)))


def of_layer(bands: tuple[Band, ...], layer: Any, num_layers: int) -> tuple[Band, ...]:
    """Returns the bands with one layer's limits; the layer, counted from 0, may be traced."""

    def pick(x):
        return jnp.broadcast_to(x, num_layers)[layer] if jnp.ndim(x) else x

    return tuple(b.replace(**{name: jax.tree.map(pick, getattr(b, name)) for name in LIMITS}) for b in bands)
