import math

import pytest

from tests.positions.closed_form import assert_frequencies
from tests.positions.test_yarn import released


@pytest.mark.parametrize(
    ("length", "finetuned", "factor"), [(4096, 1.0, 1.0), (16384, 1.0, 4.0), (16384, 8.0, 8.0), (65536, 8.0, 16.0)]
)
def test_yarn_at_the_factor_the_length_needs(length, finetuned, factor):
    scaling = [dict(name="dynamic_yarn", finetuned_factor=finetuned)]
    assert_frequencies(scaling, released(factor), gain=0.1 * math.log(factor) + 1, length=length, rtol=3e-7)
