"""Dual chunk attention: true distances within a chunk and to keys just before it, one query position for older chunks.

An et al., "Training-Free Long-Context Scaling of Large Language Models", arXiv:2402.17463; HKUNLP/ChunkLlama. Keys are
always rotated by their index in their chunk, so a cache may hold them rotated. The released code also multiplies cos
and sin by 0.05 ln(length / original_len) + 1; the paper's tables do not, and neither does this.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, window_of, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Band, Encoding

EXAMPLE = dict(chunk_size=24, local_size=4)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="rotated",
    test="bands",
    instead="yarn of the same reach; vLLM computes it for Qwen2 (dual_chunk_attention_config)",
)


def dca(
    e: Encoding,
    *,
    chunk_size: Annotated[int, Bound(2)] | None = None,
    local_size: Annotated[int, Bound(1)] | None = None,
) -> Encoding:
    """Distances, with c = chunk_size - local_size and chunks i // c: i - j within a chunk; to keys of the chunk before
    min(i % c + c, chunk_size) - j % c; to older keys min(2 c - 1, chunk_size) - j % c.

    Args:
      chunk_size: tokens, at most original_len; 3/4 of it by default.
      local_size: tokens of the neighbouring chunk seen at true distances; 1/8 of original_len by default.
    """
    size, local = window_of(e, chunk_size, 3 / 4), window_of(e, local_size, 1 / 8)
    c = size - local
    if c < 1:
        raise ValueError(f"local_size {local:g} must be less than chunk_size {size:g}.")
    return with_bands(
        e,
        Band(high=1, chunk=c, q_pos=Line(modulo=c)),
        Band(low=1, high=2, chunk=c, q_pos=Line(modulo=c, shift=c, highest=size)),
        Band(low=2, chunk=c, q_pos=Line(scale=0, shift=e.xp.minimum(2 * c - 1, size))),
        key_pos=Line(modulo=c),
    )
