"""Rotation tables and the rotation itself. Half-split layout (Hugging Face's): plane r pairs channels r and r + R.

Angles, cosines and sines are float32 whatever the model computes in: bfloat16 cannot tell position 257 from 256.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax.positions.encoding import CAUSAL, Band, Encoding


class Rotation(NamedTuple):
    """cos and sin for the queries and keys of one band, [B T R] each (with a leading L where layers differ).

    Gain, xPos decay and query scale are folded in, so that rotating is all that attention has to do.
    """

    q_cos: Array
    q_sin: Array
    k_cos: Array
    k_sin: Array


def rotations(encoding: Encoding) -> tuple[Rotation, ...]:
    """Returns one Rotation per band, computed once per forward pass for all layers.

    Raises:
      ValueError: the encoding does not come from `Encoding.at`.
    """
    if encoding.positions is None:
        raise ValueError("this Encoding has no positions: call encoding.at(positions) first.")
    if encoding.window is not None or encoding.chunk is not None:
        raise ValueError("this Encoding has a window or chunk beside its bands: set it before .at(positions).")
    band_tables = [_rotation(encoding, band) for band in encoding.bands or (CAUSAL,)]
    # If one table has an axis of layers, all get it: the scan over layers takes all tables per layer, or none.
    shape = jnp.broadcast_shapes(*(table.shape for tables in band_tables for table in tables))
    return tuple(Rotation(*(jnp.broadcast_to(table, shape) for table in tables)) for tables in band_tables)


def _rotation(e: Encoding, band: Band) -> Rotation:
    inv_freq = _per_token(e.inv_freq if band.inv_freq is None else band.inv_freq)  # [.. B T R] or [.. 1 1 R]
    gain = (e.gain if band.gain is None else band.gain)[..., None]
    k_pos = e.key_pos if band.k_pos is None else band.k_pos
    if e.start is not None:
        early_BT1 = e.positions[..., None] < e.start.tokens
        inv_freq = jnp.where(early_BT1, inv_freq * _per_token(e.start.stretch), inv_freq)
        gain = jnp.where(early_BT1, gain * e.start.gain, gain)
    tables = []
    for sign, moved in ((1.0, band.q_pos), (-1.0, k_pos)):
        p_BTR = e.positions[..., None]  # or [B T 1], where all planes move alike
        p_BTR = p_BTR if moved is None else moved(p_BTR)
        angle = p_BTR * inv_freq
        scale = gain
        if e.log_decay is not None:
            # Centred on original_len / 2: only differences matter, and exp() of the full position would overflow early.
            scale = scale * jnp.exp(sign * (p_BTR - e.original_len / 2) * e.log_decay)
        if e.query_scale is not None and sign > 0:
            scale = scale * e.query_scale[..., None]
        tables += [jnp.cos(angle) * scale, jnp.sin(angle) * scale]
    return Rotation(*tables)


def _per_token(x):
    return jnp.expand_dims(x, (-3, -2)) if x.ndim < 3 else x


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
) -> Float[Array, "B T N H"]:
    """Returns x with every plane (r, r + R) turned by its angle, computed in float32 and cast back to x's dtype."""
    # Each half is cast on its own: if x were cast whole, the backward pass would keep a float32 copy of all heads.
    x1, x2 = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return jnp.concatenate([half.astype(x.dtype) for half in turned], axis=-1)
