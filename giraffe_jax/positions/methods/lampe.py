"""LaMPE: true distances nearby and at the far end, and compressed ones in between, by as much as the length requires.

Zhang et al., "LaMPE: Length-aware Multi-grained Positional Encoding for Adaptive Long-context Scaling Without
Training", arXiv:2508.02308; scar-on/LaMPE, llama_cache1.py (read). The paper rounds a compressed distance down, which
no rotation of queries and keys can do. As in the released code, the two positions are rounded down instead, so some
distances are one token more than the paper's. Regions meet as in the paper (in the released code they overlap by a
token). The released multiplier of cos and sin, 0.1 ln(2) + 1, is left out; `scale` can add it.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from giraffe_jax.positions.bands import Line, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound, Number
from giraffe_jax.positions.encoding import Band, Encoding

EXAMPLE = dict(a=0.05, b=-1.0, head=6.0, tail=4.0)
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="bands",
    instead="ntk or yarn of the same reach",
)


def lampe(
    e: Encoding,
    *,
    a: Annotated[Number, Bound(0.0)],
    b: Annotated[Number, Bound(-1000.0)],
    longest: Annotated[Number, Bound(1.0)] | None = None,
    head: Annotated[Number, Bound(1.0)] | None = None,
    tail: Annotated[Number, Bound(0.0)] = 200.0,
) -> Encoding:
    """Distance D where D <= head; m - length + D where D >= length - tail; in between a line joins the two, in whole
    tokens: floor(r (i - head)) + head - floor(r j), r = (m - head - tail) / (length - head - tail).

    The mapped length m is longest / (1 + exp(-(a length + b))) to the nearest token, at least head + tail and at most
    the length itself; then all distances are true. A batch has one length: the one given, or its longest document's.

    Args:
      a, b: fitted to a model's perplexity at a few lengths; released are (8.673e-5, -0.648) with longest 2489 for
        Llama 2, (1.0493e-4, -2.4666) with longest 6204 for Llama 3 (there m is 1536 below 8,192 tokens, which is left
        out here), and (4.505e-5, -2.7886) with longest 82358 for Llama 3.1.
      longest: upper limit of m, tokens; 3/4 of original_len by default.
      head: tokens at true distances before the query; 1/16 of original_len by default.
      tail: tokens of the longest distances, which are not compressed.
    """
    xp, length = e.xp, e.xp.max(e.length)
    near_end, most = window_of(e, head, 1 / 16), window_of(e, longest, 3 / 4)
    ends = near_end + tail
    m = mapped(length, a=a, b=b, longest=most, least=ends, xp=xp)
    below = xp.maximum(length - ends, 1)
    above = xp.where(length > ends, xp.maximum(m - ends, 0), below)
    first, last = near_end + 1, length - tail
    return with_bands(
        e,
        near(first),
        Band(low=first, high=last, q_pos=Shrunk(above, below, near_end), k_pos=Shrunk(above, below)),
        Band(low=xp.maximum(first, last), q_pos=Line(shift=m - length), k_pos=Line()),
    )


def mapped(length: Any, *, a: Any, b: Any, longest: Any, least: Any, xp: Any) -> Any:
    """Returns the mapped length m of a length, in tokens: at least `least` and at most the length; see `lampe`."""
    m = xp.round(longest / (1 + xp.exp(-(a * length + b))))
    return xp.minimum(xp.maximum(m, least), length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shrunk:
    """The position map floor((position - head) * above / below) + head, exact where float32 may be off by one."""

    above: Any  # whole numbers of tokens
    below: Any
    head: Any = 0.0

    def __call__(self, positions: Any) -> Any:
        """Returns the mapped positions, [B T 1]."""
        above, below = (jnp.asarray(x).astype(jnp.int32) for x in (self.above, self.below))
        p = jnp.floor(positions - self.head).astype(jnp.int32)
        guess = jnp.floor(p.astype(jnp.float32) * (above / below)).astype(jnp.int32)
        # The products may overflow int32, but their difference is small, and wraps around to the exact value.
        return (guess + (p * above - guess * below) // below).astype(jnp.float32) + self.head
