"""PoSE: a short training window whose positions skip ahead, so that every distance up to target_len is seen.

Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training", arXiv:2309.10400;
dwzhu-pku/PoSE, train_pose.py, two chunks. Combine with a frequency method at factor target_len / original_len. The
released code also skips text between chunks; here the text is contiguous, as packed rows need it. To skip text like the
released code, set data.skip = dict(kind="pose", ...) instead of using this method.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(target_len=256)
IDENTITY = "short"
NEEDS = ("positions", "key")
ABOUT = dict(kind="training", training_free=False, export="weights only", cache="rotated")


def pose(e: Encoding, *, target_len: Annotated[int, Bound(2)], chunks: Annotated[int, Bound(2)] = 2) -> Encoding:
    """Training positions in `chunks` chunks with skips between; without a key (evaluation) nothing changes.

    With two chunks of a document of n tokens: the first has r ~ U{1 .. (n + 1) // 2} tokens, and positions of the
    second are u ~ U{0 .. target_len - n} further on. With more, their ends and skips are sorted uniform draws.
    Each document of a packed row has its own; a document longer than target_len is left as it is.
    """
    if e.key is None:
        return e
    rows = jax.random.split(e.key, e.positions.shape[0])
    skip = jax.vmap(lambda positions, key: _skipped(positions, key, target_len, chunks))
    return e.replace(positions=skip(e.positions, rows))


def _skipped(positions_T, key, target_len: int, chunks: int):
    """Returns the positions of one row; documents start where positions are 0."""
    num_tokens = positions_T.shape[0]
    document_T = jnp.cumsum(positions_T == 0)
    size_T = jax.ops.segment_max(positions_T, document_T, num_tokens + 1)[document_T] + 1
    ends_key, skips_key = jax.random.split(key)
    u = jax.random.uniform(ends_key, (chunks - 1, num_tokens + 1))[:, document_T]
    v = jax.random.uniform(skips_key, (chunks - 1, num_tokens + 1))[:, document_T]
    if chunks == 2:
        ends = 1 + jnp.floor(u * jnp.floor((size_T + 1) / 2))
    else:
        ends = 1 + jnp.floor(jnp.sort(u, axis=0) * (size_T - 1))
    skips = jnp.floor(jnp.sort(v, axis=0) * (jnp.maximum(target_len - size_T, 0) + 1))
    added_T = jnp.zeros(num_tokens)
    for end_T, skip_T in zip(ends, skips, strict=True):
        added_T = jnp.where(positions_T >= end_T, skip_T, added_T)
    return positions_T + added_T
