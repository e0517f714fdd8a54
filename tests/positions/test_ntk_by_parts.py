import math

import pytest

from tests.positions.closed_form import ORIGINAL_LEN, assert_frequencies, plain


def by_parts(factor, *, alpha=1.0, beta=32.0, original_len=ORIGINAL_LEN):
    """arXiv:2309.00071, equations 17 to 19: gamma is linear in the number of rotations."""

    def expected(i):
        rotations = original_len / (2 * math.pi / plain(i))
        gamma = min(max((rotations - alpha) / (beta - alpha), 0.0), 1.0)
        return (1 - gamma) * plain(i) / factor + gamma * plain(i)

    return expected


@pytest.mark.parametrize("parameters", [{}, dict(alpha=2.0, beta=16.0)])
def test_the_papers_ramp_in_rotations(parameters):
    scaling = [dict(name="ntk_by_parts", factor=16.0, **parameters)]
    assert_frequencies(scaling, by_parts(16.0, **parameters), rtol=3e-7)
