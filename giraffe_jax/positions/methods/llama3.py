"""Llama 3.1 and 3.2's scaling: planes with long wavelengths slowed by the factor, short ones kept, a blend between.

meta-llama/llama-models, `apply_scaling`; transformers' `llama3`. Llama 3.1 has factor 8, Llama 3.2 factor 32, both with
original_len 8192.
"""

import math

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.methods.yarn import check_rising

EXAMPLE = dict(factor=8.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="native", cache="rotated")


def llama3(
    e: Encoding, *, factor: Factor, low_freq_factor: Positive = 1.0, high_freq_factor: Positive = 4.0
) -> Encoding:
    """Keeps planes with more than high_freq_factor rotations in original_len, divides those with fewer than
    low_freq_factor."""
    check_rising(strictly=True, low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    rotations = e.original_len * e.inv_freq / (2 * math.pi)
    keep = e.xp.clip((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return e.replace(inv_freq=e.inv_freq * (1 - (1 - keep) * (1 - 1 / factor)))
