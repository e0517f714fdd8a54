import math

import numpy as np
import pytest

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def test_three_levels():
    b = 2 * math.pi / 2048

    def expected(i):
        if plain(i) >= b:
            return plain(i)
        return b / 16 if plain(i) >= b / 8 else 0.0

    assert_frequencies([dict(name="truncate", cutoff_len=2048)], expected)


@pytest.mark.parametrize(
    ("cutoff_len", "counts"), [(256, (26, 15, 23)), (512, (31, 15, 18)), (2048, (41, 14, 9)), (4096, (46, 14, 4))]
)
def test_planes_kept_slowed_and_stopped(cutoff_len, counts):
    inv_freq, _ = frequencies([dict(name="truncate", cutoff_len=cutoff_len)], **LLAMA2)
    slowed = np.isclose(inv_freq, 2 * math.pi / (16 * cutoff_len), rtol=1e-6, atol=0)
    assert ((inv_freq > 0).sum() - slowed.sum(), slowed.sum(), (inv_freq == 0).sum()) == counts
