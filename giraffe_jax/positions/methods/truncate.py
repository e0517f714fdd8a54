"""Giraffe's truncated basis: only planes that complete a cycle within cutoff_len keep turning freely.

Pal et al., arXiv:2308.10882; constants of abacusai/Long-Context (`truncate_frequency`). Thresholds apply to the
frequencies as they are when the method runs, so it comes last in a composition, as in the original code.
"""

import math

from giraffe_jax.positions.calls import Extent
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(cutoff_len=2048.0)
IDENTITY = dict(cutoff_len=math.inf)
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def truncate(e: Encoding, *, cutoff_len: Extent) -> Encoding:
    """With b = 2 pi / cutoff_len: th_i where th_i >= b; b / 16 where b / 8 <= th_i < b; 0 (no rotation) below.

    Both tests read the original th_i: b / 16 is itself below b / 8.
    """
    b = 2 * math.pi / cutoff_len
    low = e.xp.where(e.inv_freq >= b / 8, b / 16, 0.0)
    return e.replace(inv_freq=e.xp.where(e.inv_freq >= b, e.inv_freq, low))
