import pytest

from tests.positions.closed_form import assert_frequencies, plain


@pytest.mark.parametrize("length", [100, 4096, 10000])
def test_divided_by_how_much_longer_the_sequence_is(length):
    assert_frequencies([dict(name="dynamic_linear")], lambda i: plain(i) / max(1.0, length / 4096), length=length)
