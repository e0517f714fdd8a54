import numpy as np

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def test_slow_planes_are_slowed_most():
    assert_frequencies([dict(name="power", exponent=0.5)], lambda i: plain(i) * (1 - i / 64) ** 0.5)


def test_values_of_the_giraffe_notes():
    inv_freq, _ = frequencies([dict(name="power", exponent=0.5)], head_dim=8, theta=1e4, original_len=2048)
    np.testing.assert_allclose(inv_freq, [1, 0.0866025, 0.00707107, 0.0005], rtol=1e-6)


def test_scale_then_power_is_giraffes_order():
    scaling = [dict(name="linear", factor=4.0), dict(name="power", exponent=0.5)]
    assert_frequencies(scaling, lambda i: plain(i) / 4 * (1 - i / 64) ** 0.5)
    assert frequencies(scaling, **LLAMA2)[1] == 1.0
