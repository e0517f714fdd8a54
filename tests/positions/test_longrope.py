import math

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import bind, frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain

SHORT = [1.0 + 0.01 * i for i in range(64)]
LONG = [1.0 + 0.5 * i for i in range(64)]
SCALING = [dict(name="longrope", short_factor=SHORT, long_factor=LONG, factor=8.0)]
GAIN = math.sqrt(1 + math.log(8) / math.log(4096))


def test_short_list_up_to_the_original_length_and_long_list_beyond():
    assert_frequencies(SCALING, lambda i: plain(i) / SHORT[i], gain=GAIN, length=4096)
    assert_frequencies(SCALING, lambda i: plain(i) / LONG[i], gain=GAIN, length=4097)


def test_gain_without_factor_and_given():
    lists = dict(name="longrope", short_factor=SHORT, long_factor=LONG)
    assert_frequencies([lists], lambda i: plain(i) / SHORT[i], gain=1.0)
    assert_frequencies([lists | dict(attention_factor=1.19)], lambda i: plain(i) / SHORT[i], gain=1.19)


def test_a_traced_length_switches_the_lists():
    e = bind(SCALING, **LLAMA2)
    for length, divisors in ((100, SHORT), (5000, LONG)):
        inv_freq = e.at(np.arange(4.0)[None], length=length).inv_freq
        np.testing.assert_allclose(inv_freq, [plain(i) / divisors[i] for i in range(64)], rtol=1e-6)


def test_a_list_of_another_head_is_refused():
    with pytest.raises(
        ConfigError, match=r"scaling\[0\] \(longrope\): short_factor must have head_dim / 2 = 64 values, got 3"
    ):
        frequencies([dict(name="longrope", short_factor=[1, 2, 3], long_factor=LONG)], **LLAMA2)
