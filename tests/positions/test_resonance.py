import math

import numpy as np

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def test_wavelengths_are_whole_tokens():
    assert_frequencies([dict(name="resonance")], lambda i: 2 * math.pi / round(2 * math.pi / plain(i)))
    assert math.isclose(frequencies([dict(name="resonance")], **LLAMA2)[0][0], 2 * math.pi / 6, rel_tol=1e-7)


def test_after_yarn_and_after_planes_that_stand_still():
    slowed = frequencies([dict(name="yarn", factor=4.0), dict(name="resonance")], **LLAMA2)[0]
    np.testing.assert_allclose(2 * np.pi / slowed, np.round(2 * np.pi / slowed), rtol=2e-7)
    stopped = frequencies([dict(name="p_rope", p=0.5), dict(name="resonance")], **LLAMA2)[0]
    assert (stopped[32:] == 0).all() and np.isfinite(stopped).all()


def test_the_released_tables_of_one_period_hold_the_same_angles():
    """rotary_resonance.py repeats theta * (0 .. wavelength - 1); float32 drifts from it by 6e-8 of the angle."""
    slowed = frequencies([dict(name="yarn", factor=4.0), dict(name="resonance")], **LLAMA2)[0].astype(np.float64)
    wavelength = np.round(2 * np.pi / slowed)
    exact = 2 * np.pi / wavelength
    positions = np.arange(0, 100_000, 37)[:, None]
    table, ours = positions % wavelength * exact, positions * slowed
    assert np.abs(np.exp(1j * table) - np.exp(1j * positions * exact)).max() < 1e-9
    assert np.abs(np.exp(1j * table) - np.exp(1j * ours)).max() < 1e-7 * 100_000
