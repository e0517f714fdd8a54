"""CREAM: training positions put head and tail at the ends of the extended range, the rest in between, mostly halfway.

Wu et al., "An Efficient Recipe for Long Context Extension via Middle-Focused Positional Encoding", arXiv:2406.07138;
bigai-nlco/CREAM, src/train.py (read). Combine with a frequency method of the same factor. The released code also skips
text between the three parts; here the text is contiguous, as packed rows need it. To skip text like the released code,
set data.skip = dict(kind="cream", ...) instead of using this method.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from giraffe_jax.positions.calls import Bound, Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factor=4)
IDENTITY = "short"  # random while training, plain RoPE otherwise
NEEDS = ("positions", "key")
ABOUT = dict(kind="training", training_free=False, export="weights only", cache="rotated")


def cream(e: Encoding, *, factor: Annotated[int, Bound(2)], sigma: Positive = 3.0) -> Encoding:
    """Training positions of each document of n tokens, in three parts; without a key (evaluation) nothing changes.

    Head 0 .. h - 1; tail factor n - h .. factor n - 1; middle of m = n - 2 h tokens up to an end drawn from
    U{h + (m - 1) a / 2 .. a n / 2 - h - 1}, where a is a Gaussian of mean factor + 1, clipped to 2 .. 2 factor and
    rounded down. h is n // 3 or 4 factor (where the document has room), each in half of the cases.

    Args:
      factor: extended over trained length.
      sigma: of the Gaussian.
    """
    if e.key is None:
        return e
    rows = jax.random.split(e.key, e.positions.shape[0])
    return e.replace(positions=jax.vmap(lambda p, key: _three_parts(p, key, factor, sigma))(e.positions, rows))


def _three_parts(positions_T, key, factor: int, sigma):
    """Returns the positions of one row; documents start where positions are 0."""
    num_tokens = positions_T.shape[0]
    document_T = jnp.cumsum(positions_T == 0)
    n = jax.ops.segment_max(positions_T, document_T, num_tokens + 1)[document_T] + 1
    which, middle, place = (jax.random.uniform(k, (num_tokens + 1,))[document_T] for k in jax.random.split(key, 3))
    third = jnp.floor(n / 3)
    head = jnp.where(which < 0.5, third, jnp.minimum(4.0 * factor, third))
    m = n - 2 * head
    a = factor + 1 + sigma * 2**0.5 * jax.scipy.special.erfinv(2 * middle - 1)
    a = jnp.floor(jnp.clip(a, 2, 2 * factor))
    low, high = jnp.floor(head + (m - 1) * a / 2), jnp.floor(a * n / 2 - head - 1)
    end = low + jnp.floor(place * (jnp.maximum(high - low, 0) + 1))
    inner = end - (m - 1) + (positions_T - head)
    outer = jnp.where(positions_T < head, positions_T, (factor - 1) * n + positions_T)
    return jnp.where((positions_T < head) | (positions_T >= n - head), outer, inner)
