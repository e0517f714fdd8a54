"""Adjusted base frequency: a larger theta with further training, as in most long-context models.

Xiong et al., "Effective Long-Context Scaling of Foundation Models", arXiv:2309.16039 (theta 5e5 for 32k); Code Llama,
arXiv:2308.12950 (1e6 for 16k); ProLong, arXiv:2410.02660 (8e6 for 64k, 1.28e8 for 512k). `min_base` is the bound of Men
et al., "Base of RoPE Bounds Context Length", arXiv:2405.14591.
"""

import numpy as np

from giraffe_jax.positions.calls import Positive
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(theta=500000.0)
IDENTITY = None  # the model's own theta is its identity, and not a constant
ABOUT = dict(kind="frequencies", training_free=False, export="native", cache="rotated")


def abf(e: Encoding, *, theta: Positive) -> Encoding:
    """th_i times (theta / the model's theta)^(-2i / d); it comes before other frequency methods, which read theta."""
    if e.xp is not np or not np.array_equal(e.inv_freq, e.theta ** (-2 * e.planes / e.head_dim)):
        raise ValueError("it comes before other methods of frequencies, which read theta.")
    return e.replace(inv_freq=e.inv_freq * (theta / e.theta) ** (-2 * e.planes / e.head_dim), theta=theta + 0 * e.theta)


def min_base(length: int, head_dim: int) -> float:
    """Returns the smallest theta, to 1%, with sum_i cos(m theta^(-2i/d)) >= 0 for every distance m <= length.

    Below it, attention to similar tokens is no longer preferred at some distance within `length`.

    Args:
      length: tokens; work grows with length times head_dim.
      head_dim: d.
    """
    # The sum is not monotone in theta, so bisection could settle anywhere: walk up until it holds.
    exponents = -2 * np.arange(head_dim // 2) / head_dim
    theta = 100.0
    while not _holds(theta**exponents, length):
        theta *= 1.01
    return theta


def _holds(inv_freq: np.ndarray, length: int, chunk: int = 4096) -> bool:
    # From the far end: there it fails first.
    for end in range(length, 0, -chunk):
        distances = np.arange(max(1, end - chunk + 1), end + 1)
        if np.cos(distances[:, None] * inv_freq).sum(1).min() < 0:
            return False
    return True
