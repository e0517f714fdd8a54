"""Composition and binding: order, lookup, and what a wrong config is told."""

import re

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import Encoding, check, frequencies
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain


def double(e: Encoding, *, times: float = 2.0) -> Encoding:
    return e.replace(inv_freq=e.inv_freq * times)


def test_left_to_right():
    power_then_cut = [dict(name="power", exponent=0.5), dict(name="truncate", cutoff_len=2048)]
    cut_then_power = power_then_cut[::-1]
    assert (frequencies(power_then_cut, **LLAMA2)[0] == 0).sum() > (frequencies(cut_then_power, **LLAMA2)[0] == 0).sum()


def test_a_function_or_a_dotted_path_works_in_place_of_a_name():
    assert_frequencies([dict(name=double, times=3.0)], lambda i: plain(i) * 3)
    assert_frequencies([dict(name="tests.positions.test_compose.double")], lambda i: plain(i) * 2)


def test_no_method_is_plain_rope():
    assert_frequencies([], plain)
    assert_frequencies((), plain)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ([dict(name="linear", scale=4.0)],
         "model.positions[0] (linear): unknown ['scale'], missing ['factor']; it takes factor: float."),
        ([dict(name="liner", factor=4.0)], "model.positions[0]: unknown method 'liner'; there are "),
        ([dict(name="liner", factor=4.0)], "Did you mean 'linear'?"),
        ([dict(name="linear", factor=4.0), dict(name="yarn", factor="4")],
         "model.positions[1] (yarn).factor: expected float, got '4'."),
        ([dict(name="linear", factor=0.5)], "model.positions[0] (linear).factor: must be >= 1, got 0.5."),
        ([dict(name="truncate", cutoff_len=0)], "model.positions[0] (truncate).cutoff_len: must be > 0, got 0."),
        ([dict(name="randomize", kind="stpes")],
         "kind: got 'stpes'; allowed are 'steps', 'subset'. Did you mean 'steps'?"),
        ([dict(name="linear", factor=float("nan"))], "(linear).factor: expected float, got nan."),
        ([dict(factor=4.0)], "model.positions[0]: expected a dict with 'name'"),
        (dict(name="linear", factor=4.0), "expected a list of dicts"),
        ([dict(name="no.such.module", factor=4.0)], "cannot import 'no.such.module'"),
    ],
)  # fmt: skip
def test_errors_say_where_what_and_what_is_allowed(scaling, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(scaling)


def test_frequencies_are_rounded_once():
    inv_freq, _ = frequencies([dict(name="linear", factor=3.0), dict(name="linear", factor=7.0)], **LLAMA2)
    exact = np.array([plain(i) / 3 / 7 for i in range(64)])
    np.testing.assert_array_equal(inv_freq, exact.astype(np.float32))
