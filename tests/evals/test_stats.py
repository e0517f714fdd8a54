"""Intervals against scipy where it is installed, and against published values everywhere."""

import math

import numpy as np
import pytest

from giraffe_jax.evals import stats


@pytest.mark.parametrize(
    "successes, n, low, high",
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    estimate = stats.wilson(successes, n)
    assert estimate.value == successes / n and estimate.n == n
    assert estimate.low == pytest.approx(low, abs=5e-5) and estimate.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (7, 10), (50, 50), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, confidence):
    scipy_stats = pytest.importorskip("scipy.stats")
    want = scipy_stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    got = stats.wilson(successes, n, confidence)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-12)


def test_wilson_of_nothing_is_nan_and_of_too_much_an_error():
    assert stats.wilson(0, 0).n == 0 and math.isnan(stats.wilson(0, 0).value)
    with pytest.raises(ValueError, match="3 of 2"):
        stats.wilson(3, 2)


def test_normal_mean_is_the_textbook_interval():
    got = stats.normal_mean([1.0, 2.0, 3.0, 4.0])
    half = 1.959963984540054 * math.sqrt(5 / 3) / 2
    assert got == pytest.approx((2.5, 2.5 - half, 2.5 + half, 4))
    assert math.isnan(stats.normal_mean([1.0]).low)


def test_bootstrap_is_seeded_and_covers_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        x = rng.normal(3.0, 1.0, 60).tolist()
        got = stats.bootstrap_mean(x, [1.0] * 60, resamples=400, seed=trial)
        inside += got.low <= 3.0 <= got.high
    assert 0.89 <= inside / 200 <= 0.99
    assert stats.bootstrap_mean(x, [1.0] * 60) == stats.bootstrap_mean(x, [1.0] * 60)
    assert stats.bootstrap_mean(x, [1.0] * 60) != stats.bootstrap_mean(x, [1.0] * 60, seed=1)


def test_bootstrap_of_equal_units_is_near_the_normal_interval():
    x = np.random.default_rng(1).exponential(1.0, 400).tolist()
    boot, normal = stats.bootstrap_mean(x, [1.0] * 400, resamples=4000), stats.normal_mean(x)
    assert boot.value == pytest.approx(normal.value)
    assert (boot.low, boot.high) == pytest.approx((normal.low, normal.high), rel=0.02)


def row(nll, tokens, document, bins=()):
    return {"metrics": {"nll": nll, "tokens": tokens}, "document": document, "bins": bins}


ROWS = [row(1.0, 300, "a"), row(3.0, 100, "a"), row(5.0, 100, "b")]


def test_what_is_averaged_is_what_was_asked():
    assert stats.mean_nll(ROWS).value == pytest.approx((300 + 300 + 500) / 500)
    assert stats.mean_nll(ROWS, "window").value == pytest.approx(3.0)
    assert stats.mean_nll(ROWS, "document").value == pytest.approx((1.5 + 5.0) / 2)
    assert stats.perplexity(ROWS, "window").value == pytest.approx(math.exp(3.0))


def test_documents_are_resampled_where_there_are_several_and_windows_where_not():
    assert stats.mean_nll(ROWS).n == 2
    assert stats.mean_nll(ROWS[:2]).n == 2
    assert stats.mean_nll([ROWS[2]]).n == 1 and math.isnan(stats.mean_nll([ROWS[2]]).low)


def test_a_loss_that_is_not_finite_is_not_averaged_away():
    assert math.isnan(stats.mean_nll([*ROWS, row(None, 100, "c")]).value)


def test_perplexity_beyond_floats_is_infinite():
    assert stats.perplexity([row(1000.0, 1, "a")]).value == math.inf


def test_bins_add_up_over_rows():
    rows = [row(0, 0, "a", [[1, 2, 4.0, 1], [2, 8, 6.0, 6]]), row(0, 0, "b", [[2, 8, 12.0, 6]])]
    assert stats.merge_bins(rows) == [(1, 2, 4.0, 1), (2, 8, 1.5, 12)]


def test_share_counts_only_rows_that_have_the_metric():
    rows = [{"metrics": {"generate": 1}}, {"metrics": {"generate": 0}}, {"metrics": {"teacher": 1}}]
    assert stats.share(rows, "generate")[::3] == (0.5, 2)
