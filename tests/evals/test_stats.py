"""Intervals against scipy where it is installed, and against published values everywhere."""

import math

import numpy as np
import pytest

from giraffe_jax.evals import significance, stats


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


def of(values, documents=None):
    """Rows of a metric "x"."""
    rows = [{"metrics": {"x": x}} for x in values]
    return rows if documents is None else [r | {"document": d} for r, d in zip(rows, documents, strict=True)]


def test_a_mean_is_of_rows_or_of_the_documents_they_name():
    got = stats.mean(of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "x")
    half = 2.570582 * math.sqrt(3.5) / math.sqrt(6)  # a table's t of 5 degrees of freedom
    assert (got.value, got.n) == (3.5, 6) and (got.low, got.high) == pytest.approx((3.5 - half, 3.5 + half), rel=0.2)
    # Nearly all losses are near zero and one is large: mean - t s / sqrt(n) would be below zero.
    values = [0.01] * 9 + [9.0]
    assert np.mean(values) - 2.262 * np.std(values, ddof=1) / math.sqrt(10) < -1.1
    assert stats.mean(of(values), "x").low >= 0.00999
    assert stats.mean([*of([1.0]), {"metrics": {}}, {"metrics": {"x": None}}], "x")[::3] == (1.0, 1)
    several = stats.mean(of([1.0] * 12, documents="aabbccddeeff"), "x")
    assert several == (1.0, 1.0, 1.0, 6)
    assert math.isnan(stats.mean(of([1.0, 2.0] * 10, documents="ab" * 10), "x").low), "twenty windows of two documents"


def test_the_fewest_pairs_are_what_chance_can_order_one_way_less_often_than_the_level():
    # All orders of signs of n differences, counted: the share in which all agree is the least p of any of them.
    for level in (0.2, 0.05, 0.05 / 7, 0.001):
        shares = {}
        for n in range(2, 15):
            signs = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
            shares[n] = float(np.mean(signs.all(axis=1) | (~signs.astype(bool)).all(axis=1)))
            assert shares[n] == stats.mcnemar(n, 0)
        assert stats.fewest_pairs(level) == min(n for n, share in shares.items() if share < level)
    assert stats.FEWEST == 6 and stats.fewest_pairs(1 / 16) == 6, "at exactly 1/16 five do not say less"


def test_a_bootstrap_leaves_zero_out_wherever_all_differences_have_one_sign():
    # Which is why five differences are too few: without any effect one experiment in sixteen would say there is one.
    rng = np.random.default_rng(0)
    for n in (5, 6):
        apart = 0
        for _ in range(400):
            x = rng.normal(0.0, 1.0, n)
            got = stats.bootstrap_mean(x.tolist(), [1.0] * n, resamples=400, fewest=2)
            apart += got.low > 0 or got.high < 0
            assert (got.low > 0 or got.high < 0) or x.min() < 0 < x.max()
        # Four standard errors above 2^(1-n) at most below it: 400 trials of 6% are known to 1.2 points.
        assert apart / 400 >= 2.0 ** (1 - n) - 4 * math.sqrt(2.0 ** (1 - n) / 400)
    assert math.isnan(stats.bootstrap_mean([1.0] * 5, [1.0] * 5).low)


@pytest.mark.parametrize("n", [5, 6, 8, 12, 40])
def test_intervals_of_paired_shares_say_what_mcnemar_says(n):
    def answers(right):
        return [{"example": i, "metrics": {"x": int(k)}} for i, k in enumerate(right)]

    for gained in range(n + 1):
        for lost in range(0, n + 1 - gained, 1 if n < 20 else 3):
            mine = [1] * gained + [0] * (n - gained)
            other = [0] * gained + [1] * lost + [0] * (n - gained - lost)
            e, p = stats.paired_share(answers(mine), answers(other), "x")
            assert e.value == pytest.approx((gained - lost) / n) and p == stats.mcnemar(gained, lost)
            if n < 6:
                assert math.isnan(e.low) and math.isnan(e.high)
                continue
            assert e.low <= e.value <= e.high
            assert not (e.low > 0 or e.high < 0) or p < 0.05


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
    boot, half = stats.bootstrap_mean(x, [1.0] * 400, resamples=4000), 1.966 * np.std(x, ddof=1) / 20
    assert boot.value == pytest.approx(np.mean(x))
    assert (boot.low, boot.high) == pytest.approx((np.mean(x) - half, np.mean(x) + half), rel=0.02)


def row(nll, tokens, document, bins=()):
    return {"metrics": {"nll": nll, "tokens": tokens}, "document": document, "bins": bins}


ROWS = [row(1.0, 300, "a"), row(3.0, 100, "a"), row(5.0, 100, "b")]


def test_what_is_averaged_is_what_was_asked():
    assert stats.mean_nll(ROWS).value == pytest.approx((300 + 300 + 500) / 500)
    assert stats.mean_nll(ROWS, "window").value == pytest.approx(3.0)
    assert stats.mean_nll(ROWS, "document").value == pytest.approx((1.5 + 5.0) / 2)
    assert stats.perplexity(ROWS, "window").value == pytest.approx(math.exp(3.0))


def test_windows_of_a_document_are_no_documents():
    assert stats.mean_nll(ROWS).n == 2
    assert stats.mean_nll(ROWS[:2]).n == 1 and math.isnan(stats.mean_nll(ROWS[:2] * 20).low)
    assert math.isnan(stats.mean_nll([ROWS[2]]).low)
    nameless = [{"metrics": r["metrics"]} for r in ROWS * 2]
    assert stats.mean_nll(nameless).n == 6 and math.isfinite(stats.mean_nll(nameless).low)


def test_a_loss_that_is_not_finite_is_not_averaged_away():
    assert math.isnan(stats.mean_nll([*ROWS, row(None, 100, "c")]).value)


def test_perplexity_beyond_floats_is_infinite():
    assert stats.perplexity([row(1000.0, 1, "a")]).value == math.inf


def test_share_counts_only_rows_that_have_the_metric():
    rows = [{"metrics": {"generate": 1}}, {"metrics": {"generate": 0}}, {"metrics": {"teacher": 1}}]
    assert stats.share(rows, "generate")[::3] == (0.5, 2)
    # Of 40 passages of 4 documents, 30 of them right, the interval is that of 3 of 4.
    passages = [{"document": i % 4, "metrics": {"copied": float(i >= 10)}} for i in range(40)]
    got = stats.share(passages, "copied")
    assert got == pytest.approx(stats.wilson(3, 4)) and got.value == 0.75 and got.n == 4


@pytest.mark.parametrize(
    "p, freedom, want",
    # Any printed table of Student's t.
    [
        (0.975, 4, 2.776),
        (0.975, 7, 2.365),
        (0.975, 15, 2.131),
        (0.975, 100, 1.984),
        (0.95, 5, 2.015),
        (0.995, 8, 3.355),
    ],
)
def test_student_gives_the_printed_table(p, freedom, want):
    assert stats.student(p, freedom) == pytest.approx(want, rel=1.2e-3)
    assert stats.student(1 - p, freedom) == pytest.approx(-want, rel=1.2e-3)


@pytest.mark.parametrize("n, least", [(5, 0.84), (16, 0.89)])
def test_an_expanded_bootstrap_covers_nearly_as_it_says_where_units_are_few(n, least):
    rng, inside, bare = np.random.default_rng(n), 0, 0
    trials, ones = 200, [1.0] * n
    for trial in range(trials):
        x = rng.normal(3.0, 1.0, n).tolist()
        got, without = (
            stats.bootstrap_mean(x, ones, seed=trial, expanded=expanded, fewest=2) for expanded in (True, False)
        )
        inside += got.low <= 3.0 <= got.high
        bare += without.low <= 3.0 <= without.high
        assert got.low <= without.low and without.high <= got.high
    # In 3,000 trials it was 0.915 of five (0.834 without) and 0.949 of sixteen; 200 trials are known to 0.08 and 0.06,
    # four standard errors.
    assert inside / trials >= least and inside > bare


@pytest.mark.parametrize(
    "gained, lost, p", [(1, 7, 18 / 256), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0), (10, 2, 158 / 4096)]
)
def test_mcnemar_is_the_exact_binomial_test(gained, lost, p):
    # 1 against 7 is the airway data of Fagerland, Lydersen and Laake (2013, BMC Med. Res. Methodol. 13:91): p = 0.070.
    # Two-sided: 2 (1 + 8) / 2^8, 2 x 1 / 2^5, and 2 (1 + 12 + 66) / 2^12.
    assert stats.mcnemar(gained, lost) == stats.mcnemar(lost, gained) == pytest.approx(p, rel=1e-12)


def test_mcnemar_agrees_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(4, 26), (30, 41), (120, 80)]:
        want = scipy_stats.binomtest(gained, gained + lost).pvalue
        assert stats.mcnemar(gained, lost) == pytest.approx(want, rel=1e-9)


def test_difference_of_shares_gives_the_published_interval():
    # The example of `ci.prop.ps` in Bonett's R package statpsych: 12, 4, 26, 6 give 0.2548067 to 0.6251933.
    got = stats.difference_of_shares(26, 4, 48)
    assert (got.low, got.high) == pytest.approx((0.2548067, 0.6251933), abs=5e-8)
    assert got.value == pytest.approx(22 / 48) and got.n == 48


@pytest.mark.parametrize("up, down", [(0.0, 0.0), (0.05, 0.0), (0.2, 0.05), (0.3, 0.3), (0.9, 0.0)])
@pytest.mark.parametrize("n", [20, 40])
def test_difference_of_shares_covers_the_truth(n, up, down):
    # Not simulated: the probability of every (gained, lost) summed where the interval holds up - down.
    covered = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            same = n - gained - lost
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            probability = ways * up**gained * down**lost * (1 - up - down) ** same
            got = stats.difference_of_shares(gained, lost, n)
            covered += probability * (got.low <= up - down <= got.high)
    assert covered >= 0.93


def windows(nll, documents=None, tokens=10):
    names = range(len(nll)) if documents is None else documents
    return [row(x, tokens, f"d{names[i]}") | {"example": i, "window": 0} for i, x in enumerate(nll)]


def test_paired_losses_are_sharper_than_losses_apart():
    rng = np.random.default_rng(0)
    hard = rng.normal(4.0, 1.0, 40)
    base = windows(hard)
    mine = windows(hard - 0.1 + rng.normal(0.0, 0.02, 40))
    got = stats.paired_nll(mine, base)
    # The mean of 40 differences of spread 0.02 has a standard error of 0.003; of 40 losses, 0.16.
    assert got.n == 40 and abs(got.value + 0.1) < 0.013 and got.high < -0.08 and got.low > -0.12
    assert stats.mean_nll(mine).high > stats.mean_nll(base).low
    back = stats.paired_nll(base, mine)
    assert back.value == pytest.approx(-got.value)
    assert math.exp(got.value) == pytest.approx(stats.perplexity(mine).value / stats.perplexity(base).value)


def test_windows_are_paired_by_what_they_are_and_documents_are_resampled():
    base = windows([1.0, 2.0, 3.0, 4.0], documents=[0, 0, 1, 1])
    mine = windows([1.5, 2.5, 4.0, 5.0], documents=[0, 0, 1, 1])
    got = stats.paired_nll(mine[::-1], base, fewest=2)
    assert got.n == 2 and got.value == pytest.approx(0.75) and (got.low, got.high) == pytest.approx((0.5, 1.0))
    assert math.isnan(stats.paired_nll(mine, base).low)
    assert stats.paired_nll(mine[:2], base).n == 1, "two windows of one document"
    assert stats.paired_nll(mine, [r | {"document": "other"} for r in base]).n == 0
    other = [r | {"metrics": {"nll": 1.0, "tokens": 11}} for r in base]
    assert stats.paired_nll(mine, other).n == 0, "other targets"
    twice = [*base, *(r | {"metrics": {"nll": r["metrics"]["nll"] + 1, "tokens": 10}} for r in base)]
    assert stats.paired_nll(mine, twice).value == pytest.approx(0.25), "two seeds count as their mean"
    assert math.isnan(stats.paired_nll(mine, windows([1.0, None, 3.0, 4.0], documents=[0, 0, 1, 1])).value)


def test_paired_shares_count_who_changed():
    def answers(right, prompt="p"):
        return [{"example": i, "prompt": f"{prompt}{i}", "metrics": {"teacher": int(x)}} for i, x in enumerate(right)]

    estimate, p = stats.paired_share(answers("1111100000"), answers("0000000011"), "teacher")
    assert estimate.value == pytest.approx(0.3) and estimate.n == 10 and p == stats.mcnemar(5, 2)
    assert stats.paired_share(answers("11"), answers("00", prompt="q"), "teacher")[0].n == 0
    got = stats.paired_mean(answers("1100"), answers("0000"), "teacher")
    assert got.value == 0.5 and got.n == 4
    mine, base = ([r | {"document": "ab"[i % 2]} for i, r in enumerate(answers(x))] for x in ("1100", "0000"))
    assert stats.paired_mean(mine, base, "teacher")[::3] == (0.5, 2)


def test_the_effective_length_ends_before_the_first_bound_below_the_threshold():
    bounds = {1024: 0.7, 256: 0.9, 2048: 0.95, 512: 0.85}
    assert stats.effective_length(bounds, 0.85) == 512, "a length past one that fails does not count"
    assert stats.effective_length(bounds, 0.7) == 2048 and stats.effective_length(bounds, 0.91) is None
    assert stats.effective_length({256: math.nan, 512: 1.0}, 0.5) is None and stats.effective_length({}, 0.5) is None
    fewest = stats.fewest_for(0.85)
    assert stats.wilson(fewest, fewest).low >= 0.85 > stats.wilson(fewest - 1, fewest - 1).low


# The two-sided 5% and 0.1% points of printed tables.
@pytest.mark.parametrize("freedom, five, one", [(1, 12.706, 636.62), (2, 4.303, 31.599), (3, 3.182, 12.924)])
def test_students_p_is_that_of_the_tables(freedom, five, one):
    assert significance.student_p(five, freedom) == pytest.approx(0.05, rel=1e-3)
    assert significance.student_p(-one, freedom) == pytest.approx(0.001, rel=1e-3)


def test_students_p_inverts_its_quantile_and_tends_to_the_normal():
    for freedom in (4, 7, 30, 31):
        assert significance.student_p(stats.student(0.975, freedom), freedom) == pytest.approx(0.05, rel=5e-3)
        assert significance.student_p(0.0, freedom) == 1.0
    assert significance.student_p(1.959964, 10**5) == pytest.approx(0.05, rel=1e-3)


def test_the_p_of_a_bootstrap_interval_is_that_of_the_t_test():
    x = np.random.default_rng(0).normal(0.5, 1.0, 20)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(20))
    got = significance.interval_p(stats.bootstrap_mean(list(x), [1.0] * 20, resamples=20000))
    assert got == pytest.approx(significance.student_p(t, 19), rel=0.3)
    assert significance.interval_p(stats.Estimate(1.0, math.nan, math.nan, 1)) == 1.0
    assert significance.interval_p(stats.Estimate(-1.0, -1.0, -1.0, 5)) == 0.0
    assert significance.interval_p(stats.Estimate(0.0, 0.0, 0.0, 5)) == 1.0


def test_holm_by_hand():
    # Of four: 0.01 <= 0.05/4 and 0.013 <= 0.05/3 are rejected, 0.03 > 0.05/2 ends it, and with it 0.04 <= 0.05.
    assert significance.holm([0.01, 0.04, 0.03, 0.013]) == [True, False, False, True]
    assert significance.holm([0.013, 0.013, 0.013, 0.013]) == [False] * 4, "Bonferroni decides the first"
    assert significance.holm([0.0125, 0.0166, 0.025, 0.05]) == [True] * 4 and significance.holm([]) == []
