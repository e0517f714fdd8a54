import numpy as np

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import HEAD_DIM, LLAMA2, THETA, assert_frequencies, plain


def test_is_rope_with_the_larger_base():
    base = THETA * 8 ** (HEAD_DIM / (HEAD_DIM - 2))
    assert_frequencies([dict(name="ntk", factor=8.0)], lambda i: base ** (-2 * i / HEAD_DIM))


def test_fastest_plane_stays_and_slowest_is_divided_by_the_factor():
    inv_freq, _ = frequencies([dict(name="ntk", factor=8.0)], **LLAMA2)
    np.testing.assert_allclose(inv_freq[[0, -1]], [1.0, plain(63) / 8], rtol=2e-7)
