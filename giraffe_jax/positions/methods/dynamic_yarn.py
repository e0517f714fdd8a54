"""Dynamic YaRN: yarn with the factor length / original_len, for its frequencies and its gain.

arXiv:2309.00071, appendix B.1; jquesnelle/yarn, LlamaDynamicYaRNScaledRotaryEmbedding. A growing cache must hold raw
keys.
"""

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.methods.yarn import yarn

EXAMPLE = dict()
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(
    kind="length", training_free=True, export="custom", cache="raw", instead="yarn, with the factor of the longest text"
)


def dynamic_yarn(
    e: Encoding,
    *,
    finetuned_factor: Factor = 1.0,
    beta_fast: Positive = 32.0,
    beta_slow: Positive = 1.0,
    truncate: bool = True,
) -> Encoding:
    """yarn with factor max(finetuned_factor, length / original_len).

    Args:
      finetuned_factor: the factor of a model fine-tuned with yarn, below which it never falls (the `finetuned` flag
        of the released code).
      beta_fast, beta_slow, truncate: as in yarn.
    """
    factor = e.xp.maximum(e.length / e.original_len, finetuned_factor)
    return yarn(e, factor=factor, beta_fast=beta_fast, beta_slow=beta_slow, truncate=truncate)
