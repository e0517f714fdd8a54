"""xPos: attention that decays with distance, fast planes first.

Sun et al., "A Length-Extrapolatable Transformer", arXiv:2212.10554; constants as in microsoft/torchscale. Here in the
half-split layout of Llama weights: the Giraffe experiments rotated interleaved pairs of half-split weights, which
scrambles the pretrained model before xPos has any say.
"""

from giraffe_jax.positions.calls import Extent, Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(scale_base=512.0)
IDENTITY = dict(scale_base=float("inf"))
ABOUT = dict(
    kind="decay",
    training_free=False,
    export="custom",
    cache="rotated",
    instead="none: without its decay it is another model",
)


def xpos(e: Encoding, *, scale_base: Extent = 512.0, gamma: Positive = 0.4) -> Encoding:
    """Logits of plane i get zeta_i^((m - n) / scale_base), with zeta_i = (2i / d + gamma) / (1 + gamma).

    Args:
      scale_base: distance scale, tokens; Giraffe evaluates at 8192.
      gamma: how much the fastest plane decays; 0.4 in the paper.

    Positions may reach about 70 * scale_base tokens from original_len / 2 before float32 overflows.
    """
    zeta = (2 * e.planes / e.head_dim + gamma) / (1 + gamma)
    log_decay = e.xp.log(zeta) / scale_base
    return e.replace(log_decay=log_decay if e.log_decay is None else e.log_decay + log_decay)
