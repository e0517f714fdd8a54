import math

import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def test_soft_and_hard():
    def soft(i):
        return plain(i) * (0.5 * (1 + math.cos(math.pi * (i - 44) / 19)) if i >= 44 else 1.0)

    inv_freq, _ = frequencies([dict(name="clip")], **LLAMA2)
    assert abs(inv_freq[48] - 8.945703e-4) < 1e-9 and inv_freq[63] == 0
    assert_frequencies([dict(name="clip")], lambda i: soft(i) if i < 63 else 0.0, rtol=3e-7)
    assert_frequencies([dict(name="clip", planes=20, soft=False)], lambda i: plain(i) if i < 44 else 0.0)


def test_more_planes_than_a_head_has_are_refused():
    with pytest.raises(ConfigError, match="planes must be at most head_dim / 2 = 64, got 65"):
        frequencies([dict(name="clip", planes=65)], **LLAMA2)
