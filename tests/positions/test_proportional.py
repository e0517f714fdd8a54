from tests.positions.closed_form import assert_frequencies, plain


def test_frequencies_run_over_the_whole_head():
    scaling = [dict(name="proportional", fraction=0.25, factor=8.0)]
    assert_frequencies(scaling, lambda i: plain(i) / 8 if i < 16 else 0.0)
