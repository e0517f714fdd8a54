"""Proportional RoPE (Gemma 4): the first planes keep plain RoPE's frequencies over a factor, the rest do not turn.

transformers 5.23, `_compute_proportional_rope_parameters`: exponents run over the whole head, unlike `partial`; no
paper at arXiv describes it.
"""

from giraffe_jax.positions.calls import Factor, Fraction
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(fraction=0.5, factor=2.0)
IDENTITY = dict(fraction=1.0, factor=1.0)
ABOUT = dict(kind="frequencies", training_free=False, export="native", cache="rotated")


def proportional(e: Encoding, *, fraction: Fraction, factor: Factor = 1.0) -> Encoding:
    """th_i / factor for the first floor(fraction d / 2) planes, 0 for the rest."""
    turning = e.xp.floor(fraction * e.planes.shape[0])
    return e.replace(inv_freq=e.xp.where(e.planes < turning, e.inv_freq / factor, 0.0))
