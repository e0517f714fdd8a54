import math

import numpy as np
import pytest

from giraffe_jax.positions import frequencies
from giraffe_jax.positions.methods.abf import min_base
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


@pytest.mark.parametrize("theta", [5e5, 1e6, 1.28e8])
def test_is_rope_of_another_theta(theta):
    assert_frequencies([dict(name="abf", theta=theta)], lambda i: plain(i, theta=theta), rtol=3e-7)


def test_methods_after_it_read_its_theta():
    after = [dict(name="abf", theta=5e5), dict(name="yarn", factor=4.0)]
    want = frequencies([dict(name="yarn", factor=4.0)], **(LLAMA2 | dict(theta=5e5)))[0]
    np.testing.assert_allclose(frequencies(after, **LLAMA2)[0], want, rtol=3e-7)


@pytest.mark.parametrize(("length", "paper"), [(1024, 4.3e3), (4096, 2.7e4)])
def test_min_base_is_near_the_papers_table(length, paper):
    """Table 2 of arXiv:2405.14591; its grid and ours are not the same."""
    assert 0.6 * paper < min_base(length, 128) < 1.4 * paper


def test_min_base_is_the_first_that_holds():
    def smallest(theta):
        return min(sum(math.cos(m * theta ** (-2 * i / 32)) for i in range(16)) for m in range(1, 201))

    base = min_base(200, 32)
    assert smallest(base) >= 0 > smallest(base / 1.01)
