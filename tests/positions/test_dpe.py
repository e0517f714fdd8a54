"""DPE: attention pair by pair from its formula, and what it is with one factor."""

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import distances
from tests.close import ULP, close
from tests.positions.closed_form import attention_by_hand, attention_of, heads

WIDTH = 16


@pytest.mark.parametrize(
    ("factors", "window"), [([2, 8, 1, 4], 12), ([3, 2], 7), ([5], 1), ([2, 8, 2, 8, 32, 32, 32, 4], 40)]
)
def test_every_share_of_planes_has_its_own_groups(factors, window):
    theta = [1e4 ** (-2 * r / WIDTH) for r in range(WIDTH // 2)]

    def phase(i, j):
        if i - j < window:
            return [(i - j) * x for x in theta]
        own = [f for f in factors for _ in range(len(theta) // len(factors))]
        return [(i // f - j // f + window - window // f) * x for f, x in zip(own, theta, strict=True)]

    q, k, v = heads(56, WIDTH)
    got = attention_of([dict(name="dpe", factors=factors, window=window)], q, k, v, theta=1e4, original_len=32)
    close(got, attention_by_hand(q, k, v, phase), ulps=256)


def test_distances_are_told_plane_by_plane():
    """With one factor for all it is SelfExtend, whose distances another test knows."""
    model = dict(length=96, head_dim=8, theta=1e4, original_len=32)
    entry = [dict(name="dpe", factors=[3, 6], window=10)]
    for plane, group in ((0, 3), (1, 3), (2, 6), (3, 6), (-1, 6)):
        want = distances([dict(name="self_extend", window=10, group=group)], **model)
        np.testing.assert_allclose(distances(entry, plane=plane, **model), want, atol=64 * ULP * 96)


@pytest.mark.parametrize(("factors", "what"), [([2, 4, 8], "3"), ([[2, 4], [4, 2]], "2, 2")])
def test_factors_that_are_no_equal_shares_are_refused(factors, what):
    with pytest.raises(ConfigError, match=rf"\(dpe\): factors: .*divides 8 planes, got shape \({what}"):
        attention_of([dict(name="dpe", factors=factors)], *heads(4, WIDTH), theta=1e4, original_len=32)
