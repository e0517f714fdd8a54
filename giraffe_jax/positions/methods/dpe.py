"""DPE: true distances within a window; beyond it grouped positions, with a group size for each share of the planes.

Lu et al., "Effective Length Extrapolation via Dimension-Wise Positional Embeddings Manipulation", arXiv:2504.18857;
LuLuLuyi/DPE, dpe_for_llama.py (read): SelfExtend with a group size for every share of planes. The paper's "key
dimensions" are left out, as by the released default select_topk_dim=False: they are different planes in every head,
and bands rotate all heads alike.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, with_bands
from giraffe_jax.positions.calls import Bound, Factors
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factors=[2.0, 4.0], window=8)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    instead="ntk or yarn of the same reach",
)


def dpe(e: Encoding, *, factors: Factors, window: Annotated[int, Bound(1)] = 1024) -> Encoding:
    """Distance D where D < window, else i // f - j // f + window - window // f, with f the plane's own factor.

    Args:
      factors: group sizes of that many equal shares of the planes, fastest first, measured on each model. Released are
        [2, 8, 2, 8, 32, 32, 32, 4] for Llama 3 8B Instruct, [2, 32, 32, 2, 2, 2, 2, 1] for Llama 3.1 8B Instruct,
        [4, 16, 2, 16, 32, 16, 16, 2] for Mistral 7B Instruct v0.2 and [2, 16, 8, 8, 32, 8, 2, 4] for Qwen 2.5 7B
        Instruct (its README has [4, 4, 2, 16, 32, 32, 16, 128] for the first).
      window: tokens.
    """
    f, planes = e.xp.asarray(factors), e.head_dim // 2
    if f.ndim > 1 or planes % len(f):
        raise ValueError(f"factors: expected one list whose length divides {planes} planes, got shape {f.shape}.")
    f = e.xp.repeat(f, planes // len(f))
    return with_bands(e, near(window), far(window, Line(1.0, window - window // f, f), Line(group=f)))
