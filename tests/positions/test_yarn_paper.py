import math

import pytest

from giraffe_jax.positions import frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies
from tests.positions.test_ntk_by_parts import by_parts


@pytest.mark.parametrize("factor", [2.0, 16.0])
def test_by_parts_with_yarns_gain(factor):
    scaling = [dict(name="yarn_paper", factor=factor)]
    assert_frequencies(scaling, by_parts(factor), gain=0.1 * math.log(factor) + 1, rtol=3e-7)
    assert frequencies([dict(name="yarn_paper", factor=factor, attention_factor=1.0)], **LLAMA2)[1] == 1.0


def test_differs_from_the_released_ramp_by_two_thirds_at_plane_38():
    paper = frequencies([dict(name="yarn_paper", factor=16.0)], **LLAMA2)[0]
    code = frequencies([dict(name="yarn", factor=16.0)], **LLAMA2)[0]
    assert abs(paper[32] - 2.294048e-3) < 1e-8 and abs(code[32] - 5.673077e-3) < 1e-8
    assert 0.66 < (1 - paper / code).max() < 0.68
