from tests.positions.closed_form import assert_frequencies


def test_nothing_turns():
    assert_frequencies([dict(name="nope")], lambda i: 0.0)
