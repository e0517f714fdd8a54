"""p-RoPE: the slowest planes do not turn at all, and carry content without position.

Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?", arXiv:2410.06205; p = 0.75 was
best there. Not the same as `partial` or `proportional`.
"""

from giraffe_jax.positions.calls import Fraction
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(p=0.75)
IDENTITY = dict(p=1.0)
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def p_rope(e: Encoding, *, p: Fraction) -> Encoding:
    """th_i for the fastest p of the planes (rounded down to whole planes), 0 for the rest."""
    return e.replace(inv_freq=e.xp.where(e.planes < e.xp.floor(p * e.planes.shape[0]), e.inv_freq, 0.0))
