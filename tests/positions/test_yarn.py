import math

import pytest

from tests.positions.closed_form import HEAD_DIM, ORIGINAL_LEN, THETA, assert_frequencies, plain


def released(
    factor, *, beta_fast=32.0, beta_slow=1.0, rounded=True, theta=THETA, d=HEAD_DIM, original_len=ORIGINAL_LEN
):
    """The released ramp, written out from its description: linear in the plane's index between two planes."""

    def plane(rotations):
        return d * math.log(original_len / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = plane(beta_fast), plane(beta_slow)
    if rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)

    def expected(i):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        return plain(i, theta=theta, head_dim=d) * (interpolated / factor + 1 - interpolated)

    return expected


@pytest.mark.parametrize("factor", [2.0, 16.0, 32.0])
def test_released_ramp(factor):
    assert_frequencies([dict(name="yarn", factor=factor)], released(factor), gain=0.1 * math.log(factor) + 1)


def test_ramp_of_llama_2_runs_from_plane_20_to_46():
    expected = released(16.0)
    assert expected(20) == plain(20) and expected(21) < plain(21)
    assert math.isclose(expected(46), plain(46) / 16) and expected(45) > plain(45) / 16


def test_unrounded_ramp_other_betas_and_another_model():
    scaling = [dict(name="yarn", factor=4.0, beta_fast=16, beta_slow=2, truncate=False)]
    model = dict(theta=5e5, head_dim=64, original_len=8192)
    expected = released(4.0, beta_fast=16, beta_slow=2, rounded=False, theta=5e5, d=64, original_len=8192)
    assert_frequencies(scaling, expected, gain=0.1 * math.log(4) + 1, **model)


@pytest.mark.parametrize(
    ("parameters", "gain"),
    [
        (dict(attention_factor=1.25), 1.25),
        (dict(mscale=0.707, mscale_all_dim=0.707), 1.0),
        (dict(mscale=1.0, mscale_all_dim=0.5), (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)),
        (dict(mscale=1.0), 0.1 * math.log(40) + 1),
    ],
)
def test_gain(parameters, gain):
    assert_frequencies([dict(name="yarn", factor=40.0, **parameters)], released(40.0), gain=gain)


def test_deepseeks_pair_whole():
    """modeling_deepseek_v3.py: the ratio on cos and sin, and the softmax scale times the denominator's square."""
    all_dim = 0.08 * math.log(40) + 1
    pair = dict(name="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.8)
    scaling = [pair, dict(name="scale", value=all_dim**2)]
    assert_frequencies(scaling, released(40.0), gain=(0.1 * math.log(40) + 1) / all_dim * all_dim)
