"""NoPE: no rotation at all; causality alone tells a model where tokens are.

Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in Transformers", arXiv:2305.19466;
DroPE, arXiv:2512.12167, removes RoPE from a trained model this way, trains on at the original length, and reads longer
texts with `scale` after it.
"""

from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict()
IDENTITY = None  # has no parameters, and never is plain RoPE
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def nope(e: Encoding) -> Encoding:
    """0 for every plane."""
    return e.replace(inv_freq=0 * e.inv_freq)
