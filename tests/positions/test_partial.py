import pytest

from tests.positions.closed_form import THETA, assert_frequencies


@pytest.mark.parametrize(("fraction", "d_rot"), [(0.25, 32), (0.5, 64)])
def test_frequencies_run_over_the_part_that_turns(fraction, d_rot):
    """GPT-NeoX: inv_freq = theta^(-2i / d_rot) for i < d_rot / 2; other features are passed on."""
    scaling = [dict(name="partial", fraction=fraction)]
    assert_frequencies(scaling, lambda i: THETA ** (-2 * i / d_rot) if 2 * i < d_rot else 0.0, rtol=3e-7)
