"""The measure itself: it passes what rounding does, and fails what it does not."""

import numpy as np
import pytest

from tests.close import ULP, close, decided


def test_the_limit_scales_with_the_arrays_largest_value():
    want = np.array([1000.0, 1e-3])
    close(want + 63 * ULP * 1000, want, ulps=64)
    with pytest.raises(AssertionError, match=r"head differ by .* at \(1,\).*65 ulps.*allowed 64"):
        close(want + np.array([0, 65 * ULP * 1000]), want, ulps=64, what="head")


@pytest.mark.parametrize("got", [np.ones((1, 3)), np.array([1.0, np.nan, 1.0]), 1.0])
def test_shapes_and_nans_are_not_close(got):
    with pytest.raises(AssertionError):
        close(got, np.ones(3), ulps=1e9)


def test_a_near_tie_is_not_decided():
    scores = np.array([[0.0, 2.0, 1.0], [2.0, 2.0 + 100 * ULP, 0.0]])
    assert decided(scores).tolist() == [True, False]
