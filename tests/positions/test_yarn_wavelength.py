import math

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def test_wavelengths_are_blended_along_the_released_ramp():
    """Llama 2's ramp runs from plane 20 to 46; lambda' = lambda (1 - r) + 16 lambda r."""

    def expected(i):
        wavelength, r = 2 * math.pi / plain(i), min(max((i - 20) / 26, 0.0), 1.0)
        return 2 * math.pi / (wavelength * (1 - r) + 16 * wavelength * r)

    assert_frequencies([dict(name="yarn_wavelength", factor=16.0)], expected, gain=0.1 * math.log(16) + 1, rtol=3e-7)
    assert abs(frequencies([dict(name="yarn_wavelength", factor=16.0)], **LLAMA2)[0][32] - 1.262136e-3) < 1e-9
