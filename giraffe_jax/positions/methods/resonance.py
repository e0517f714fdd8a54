"""Resonance RoPE: wavelengths rounded to whole tokens, so that positions repeat exactly.

Wang et al., "Resonance RoPE", arXiv:2403.00071. Comes last in a composition. The fastest plane moves most: its
wavelength 6.28 becomes 6, so it needs some training although it is presented as a drop-in. The released code's tables
of one period, repeated (sheryc/resonance_rope, read), hold the same angles up to whole turns.
"""

import math

from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = None  # has no parameters, and moves even the fastest plane
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def resonance(e: Encoding) -> Encoding:
    """2 pi / round(2 pi / th_i); planes that do not turn stay so."""
    turning = e.inv_freq > 0
    wavelength = 2 * math.pi / e.xp.where(turning, e.inv_freq, 1.0)
    return e.replace(inv_freq=e.xp.where(turning, 2 * math.pi / e.xp.round(wavelength), 0.0))
