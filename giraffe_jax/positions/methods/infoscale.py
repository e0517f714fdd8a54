"""InfoScale: queries grow so that attention's entropy stays as it was while there are more keys.

Li et al., "Information Entropy Invariance: Enhancing Length Extrapolation in Attention Mechanisms", arXiv:2501.08570;
HT-NEKO/Information-Entropy-Invariance, overlap_attention.py and layer.py (read). The factor is at least 1, as in the
released T5; in the released GAU, which is bidirectional, it is below 1 for texts shorter than those of training. The
paper's CosScale is left out: it normalises queries and keys, which makes it another model.
"""

from giraffe_jax.positions.calls import Extent, scale_queries
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = dict(trained=float("inf"))
NEEDS = ("positions",)
ABOUT = dict(
    kind="temperature",
    training_free=True,
    export="custom",
    cache="rotated",
    test="temperature",
    instead="scale, at one length",
)


def infoscale(e: Encoding, *, trained: Extent | None = None) -> Encoding:
    """Logits of query n times sqrt((1 - (n + 1)^(-2/d)) / (1 - trained^(-2/d))), at least 1; d is the width of a head.

    Args:
      trained: tokens that the model was trained on; original_len by default.
    """
    trained = e.original_len if trained is None else trained

    def spread(n):  # 1 - n^(-2/d), without the cancellation of that difference in float32
        return -e.xp.expm1(-2 / e.head_dim * e.xp.log(n))

    return scale_queries(e, e.xp.maximum((spread(e.positions + 1) / spread(trained)) ** 0.5, 1.0))
