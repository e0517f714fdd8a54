"""InfoScale: queries grow so that attention's entropy stays as it was while there are more keys.

Li et al., "Information Entropy Invariance: Enhancing Length Extrapolation in Attention Mechanisms", arXiv:2501.08570;
HT-NEKO/Information-Entropy-Invariance, overlap_attention.py and layer.py (read). At least 1, as in the released T5; the
released GAU, which reads in both directions, goes below 1 in texts shorter than those it was trained on. The paper's
CosScale is not here: it normalises queries and keys, which makes another model.
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

    def spread(n):  # 1 - n^(-2/d), of which float32 would lose the first digits
        return -e.xp.expm1(-2 / e.head_dim * e.xp.log(n))

    return scale_queries(e, e.xp.maximum((spread(e.positions + 1) / spread(trained)) ** 0.5, 1.0))
