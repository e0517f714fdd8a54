import math

import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import bind, frequencies, rotations
from tests.close import ULP, close
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
        ConfigError, match=r"positions\[0\] \(longrope\): short_factor must have head_dim / 2 = 64 values, got 3"
    ):
        frequencies([dict(name="longrope", short_factor=[1, 2, 3], long_factor=LONG)], **LLAMA2)


def test_both_magnitude_policies():
    scaling = [SCALING[0] | dict(magnitude_policy="yarn")]
    assert_frequencies(scaling, lambda i: plain(i) / SHORT[i], gain=0.1 * math.log(8) + 1)
    assert_frequencies([SCALING[0] | dict(magnitude_policy="su")], lambda i: plain(i) / SHORT[i], gain=GAIN)


@pytest.mark.parametrize("length", [4096, 8192, 20000, 32768])
def test_dynamic_goes_from_one_list_to_the_other(length):
    """rope/longrope.py, its Dynamic class, for a short list of ones: 1 + (lambda - 1) (l / L - 1) / (s - 1)."""
    scaling = [dict(name="longrope", short_factor=[1.0] * 64, long_factor=LONG, factor=8.0, dynamic=True)]
    share = (length / 4096 - 1) / 7
    assert_frequencies(scaling, lambda i: plain(i) / (1 + (LONG[i] - 1) * share), gain=GAIN, length=length, rtol=3e-7)


def test_each_layer_may_have_its_own_lists():
    layers = [[1.0 + 0.1 * layer * i for i in range(4)] for layer in range(3)]
    small = dict(head_dim=8, theta=1e4, original_len=32)
    scaling = [dict(name="longrope", short_factor=[1.0] * 4, long_factor=layers)]
    e = bind(scaling, num_layers=3, length=64, **small).at(jnp.arange(5.0)[None])
    want = [[plain(i, head_dim=8) / row[i] for i in range(4)] for row in layers]
    np.testing.assert_allclose(e.inv_freq, want, rtol=2e-7)
    angle = np.arange(5)[None, :, None] * np.array(want)[:, None, :]
    close(rotations(e)[0].k_sin[:, 0], np.sin(angle))
    with pytest.raises(ConfigError, match="long_factor must have one list for each of 4 layers, got 3"):
        bind(scaling, num_layers=4, length=64, **small)
    with pytest.raises(ConfigError, match=r"long_factor: expected lists of one length, got \[4, 3\]"):
        bind([scaling[0] | dict(long_factor=[[1.0] * 4, [1.0] * 3])], **small)


@pytest.mark.parametrize("scaling", [[], [dict(name="linear", factor=2.0)]])
def test_start_tokens_turn_as_they_did_before(scaling):
    """The paper's n-hat; the released Mixed class copies cos and sin of the first rows, magnitude and all."""
    lists = dict(short_factor=[1.0] * 4, long_factor=[1.0, 1.5, 3.0, 4.0])
    scaling = [*scaling, dict(name="longrope", **lists, factor=4.0, start_tokens=6)]
    e = bind(scaling, head_dim=8, theta=1e4, original_len=32, length=64).at(jnp.arange(12.0)[None])
    before, gain = 2.0 ** (len(scaling) - 1), math.sqrt(1 + math.log(4) / math.log(32))
    table = rotations(e)[0]
    for n in range(12):
        th = [plain(i, head_dim=8) / before / (1 if n < 6 else lists["long_factor"][i]) for i in range(4)]
        for got, f in (
            (table.q_cos, math.cos),
            (table.q_sin, math.sin),
            (table.k_cos, math.cos),
            (table.k_sin, math.sin),
        ):
            want = [(1 if n < 6 else gain) * f(n * x) for x in th]
            assert np.abs(got[0, n] - np.array(want)).max() < 64 * ULP * gain


def test_what_start_tokens_had_follows_the_methods_after():
    """A layer that does not rotate does not rotate its first tokens either."""
    lists = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)
    scaling = [dict(name="longrope", **lists, start_tokens=4), dict(name="nope_layers", every=2)]
    e = bind(scaling, head_dim=8, theta=1e4, original_len=32, length=64, num_layers=2).at(jnp.arange(8.0)[None])
    table = rotations(e)[0]
    assert float(jnp.abs(table.q_sin[0]).max()) > 0.5 and float(jnp.abs(table.q_sin[1]).max()) == 0


def test_refusals():
    lists = dict(name="longrope", short_factor=[1.0] * 64, long_factor=LONG)
    with pytest.raises(ConfigError, match="dynamic needs factor"):
        frequencies([lists | dict(dynamic=True)], **LLAMA2)
    with pytest.raises(ConfigError, match="an earlier longrope has start tokens already"):
        frequencies([lists | dict(start_tokens=4)] * 2, **LLAMA2)
