"""log-n scaling: queries are scaled by the logarithm of their position, so that attention over more keys stays sharp.

Su (2021), kexue.fm 8823; used by ReRoPE, by EABF (in the code of arXiv:2410.23771) and by Qwen, and on the layers
without rotation by SWAN.
"""

from typing import Annotated, Any

from giraffe_jax.positions.calls import Bound, Extent, scale_queries
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.layers import alternate

EXAMPLE = dict()
IDENTITY = dict(base=float("inf"))
NEEDS = ("positions",)
ABOUT = dict(
    kind="temperature",
    training_free=True,
    export="custom",
    cache="rotated",
    test="temperature",
    instead="scale, at one length",
)


def logn(e: Encoding, *, base: Extent | None = None, every: Annotated[int, Bound(0)] = 0) -> Encoding:
    """Logits of query n times max(1, ln(n + 1) / ln(base)).

    Args:
      base: tokens; original_len by default.
      every: only in layers every, 2 every, ... (counted from 1); 0 for all.
    """
    xp: Any = e.xp
    base = e.original_len if base is None else base
    scale = xp.maximum(xp.log(e.positions + 1) / xp.log(base), 1.0)
    return scale_queries(e, alternate(e, every, 1.0, scale, axes=2) if every else scale)
