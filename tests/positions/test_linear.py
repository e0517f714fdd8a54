from tests.positions.closed_form import assert_frequencies, plain


def test_every_frequency_is_divided_by_the_factor():
    assert_frequencies([dict(name="linear", factor=8)], lambda i: plain(i) / 8)


def test_factors_multiply():
    assert_frequencies([dict(name="linear", factor=2.0), dict(name="linear", factor=3.0)], lambda i: plain(i) / 6)
