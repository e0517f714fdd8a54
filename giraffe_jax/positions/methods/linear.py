"""Linear position interpolation: every frequency divided by the same factor.

Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", arXiv:2306.15595;
kaiokendev's SuperHOT. Giraffe (arXiv:2308.10882) finds it the most robust of its methods after fine-tuning.
"""

from giraffe_jax.positions.calls import Factor
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="native", cache="rotated")


def linear(e: Encoding, *, factor: Factor) -> Encoding:
    """th_i / factor: position n is read as n / factor."""
    return e.replace(inv_freq=e.inv_freq / factor)
