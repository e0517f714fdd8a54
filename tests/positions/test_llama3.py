import math

import pytest

from tests.positions.closed_form import assert_frequencies, plain


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_three_ranges_of_wavelengths(factor):
    theta, original_len, low, high = 500000.0, 8192, 1.0, 4.0

    def expected(i):
        frequency = plain(i, theta=theta)
        wavelength = 2 * math.pi / frequency
        if wavelength < original_len / high:
            return frequency
        if wavelength > original_len / low:
            return frequency / factor
        smooth = (original_len / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    assert_frequencies([dict(name="llama3", factor=factor)], expected, theta=theta, original_len=original_len)
