"""What the tests of methods share: a Llama-2 head, and plain RoPE from its definition, in Python floats."""

import math

import numpy as np

from giraffe_jax.positions import frequencies

HEAD_DIM, THETA, ORIGINAL_LEN = 128, 10000.0, 4096
LLAMA2 = dict(head_dim=HEAD_DIM, theta=THETA, original_len=ORIGINAL_LEN)


def plain(i: int, *, theta: float = THETA, head_dim: int = HEAD_DIM) -> float:
    return math.pow(theta, -2 * i / head_dim)


def assert_frequencies(scaling, expected, *, gain=1.0, rtol=2e-7, **settings):
    """Compares with `expected(i)` in float64; 2e-7 is the rounding to float32 and nothing more."""
    inv_freq, got_gain = frequencies(scaling, **(LLAMA2 | settings))
    want = np.array([expected(i) for i in range(len(inv_freq))], np.float64)
    assert inv_freq.dtype == np.float32
    np.testing.assert_allclose(inv_freq, want, rtol=rtol, atol=0)
    assert isinstance(got_gain, float)
    assert math.isclose(got_gain, gain, rel_tol=1e-12)
