"""Clipped RoPE: the slowest planes fade out to no rotation, softly or at once.

"CoPE", arXiv:2602.05258 (not contextual CoPE, arXiv:2405.18719); hrlics/CoPE. Apply it after the method that extends
the frequencies, and fine-tune. The paper clips 20 of 64 planes.
"""

import math
from typing import Annotated

from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(planes=2)
IDENTITY = dict(planes=0)
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def clip(e: Encoding, *, planes: Annotated[int, Bound(0)] = 20, soft: bool = True) -> Encoding:
    """The last `planes` frequencies th_i times (1 + cos(pi u)) / 2, with u from 0 to 1 over them; 0 if not `soft`."""
    num_planes = e.planes.shape[0]
    if planes > num_planes:
        raise ValueError(f"planes must be at most head_dim / 2 = {num_planes}, got {planes}.")
    u = (e.planes - (num_planes - planes)) / max(planes - 1, 1)
    kept = (1 + e.xp.cos(math.pi * e.xp.clip(u, 0, 1))) / 2 if soft else 0.0
    return e.replace(inv_freq=e.xp.where(u < 0, e.inv_freq, e.inv_freq * kept))
