import pytest

from tests.positions.closed_form import assert_frequencies, plain


@pytest.mark.parametrize(("p", "turning"), [(0.75, 48), (0.26, 16), (1.0, 64)])
def test_the_slowest_planes_stand_still(p, turning):
    assert_frequencies([dict(name="p_rope", p=p)], lambda i: plain(i) if i < turning else 0.0)
