"""Intervals over bases, seeds and questions: variances of random-effects means in closed form, coverage, ranks."""

import math

import numpy as np
import pytest

from giraffe_jax.evals import crossed, stats


def simulated(rng, sets, sizes, base, seed, question, rest, lengths=1):
    """Data sets [sets][bases][seeds, lengths, questions] of mean 0 with these standard deviations."""
    bases, seeds, questions = sizes
    effects = (
        base * rng.normal(size=(sets, bases, 1, 1, 1))
        + seed * rng.normal(size=(sets, bases, seeds, 1, 1))
        + question * rng.normal(size=(sets, 1, 1, lengths, questions))
        + rest * rng.normal(size=(sets, bases, seeds, lengths, questions))
    )
    return {str(i): list(x) for i, x in enumerate(effects)}


# bases, seeds, questions; standard deviations of bases, seeds, questions and the rest.
SIZES = {
    "bases": ((5, 2, 60), (1.0, 0.3, 0.5, 1.0)),
    "seeds": ((5, 2, 60), (0.0, 1.0, 0.5, 1.0)),
    "questions": ((5, 1, 60), (0.1, 0.0, 2.0, 1.0)),
    "three bases": ((3, 3, 60), (1.0, 0.5, 1.0, 1.0)),
    "one base": ((1, 4, 60), (0.0, 1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("name", SIZES)
def test_intervals_hold_the_mean_about_as_often_as_they_say(name):
    """400 data sets at once, as if they were variants: each holds 0, its mean over all bases, seeds and questions."""
    sizes, spreads = SIZES[name]
    data = simulated(np.random.default_rng(1), 400, sizes, *spreads)
    _, drawn = (x[..., 0] for x in crossed.draws(data, resamples=1000))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    inside = float(np.mean((low <= 0) & (high >= 0)))
    assert 0.91 <= inside <= 0.99  # of 95%, 400 data sets are known to 4.4 points, four standard errors
    if name != "questions":  # what questions alone say of the first base and seed
        alone = {k: [bases[0][:1]] for k, bases in data.items()}
        low, high = np.quantile(crossed.draws(alone, resamples=1000)[1][..., 0], [0.025, 0.975], axis=0)
        assert np.mean((low <= 0) & (high >= 0)) < 0.6


def test_the_variance_is_that_of_the_random_effects_mean():
    """Of y = B + S + Q + rest, the mean over 30 bases of 2 seeds and 50 questions has the variance
    B^2/30 + S^2/60 + Q^2/50 + rest^2/3000; the rest counts twice here, which is 0.0003 of 0.05."""
    base, seed, question, rest = 1.0, 0.8, 0.6, 1.0
    data = simulated(np.random.default_rng(0), 300, (30, 2, 50), base, seed, question, rest)
    drawn = crossed.draws(data, resamples=2000)[1][..., 0]
    # Both parts are widened, for 95%: by Student's t over the normal distribution, squared 1.089 and 1.051.
    t = (2.0452 / 1.95996) ** 2, (2.0096 / 1.95996) ** 2
    want = t[0] * (base**2 / 30 + seed**2 / 60 + rest**2 / 3000) + t[1] * (question**2 / 50 + rest**2 / 3000)
    assert np.mean(drawn.var(0)) == pytest.approx(want, rel=0.05)


def test_of_one_base_and_seed_the_interval_is_that_of_the_questions():
    x = np.random.default_rng(3).normal(size=80)
    got = crossed.ranked({"v": [x[None, None]]})["v"].score
    half = 1.9905 * x.std(ddof=1) / math.sqrt(80)  # Student's t of 79
    assert got.n == 80 and got.value == pytest.approx(x.mean())
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.05)


def test_ranks_of_variants_far_apart_are_certain_and_of_near_ones_are_not():
    rng = np.random.default_rng(0)
    shared = [base + rng.normal(size=(n, 3, 40)) for n, base in ((1, -3.0), (3, 0.0), (2, 4.0))]
    made = {name: [x + shift for x in shared] for name, shift in (("c", 0.0), ("a", 2.0), ("b", 1.0))}
    found = crossed.ranked(made)
    # The same bases and questions for all, so that what is hard for all moves no rank.
    assert {name: x.rank[:3] for name, x in found.items()} == {"a": (1, 1, 1), "b": (2, 2, 2), "c": (3, 3, 3)}
    assert found["a"].score.low < found["b"].score.value < found["a"].score.high and found["a"].score.n == 3
    assert {name: x.rank.value for name, x in crossed.ranked(made, higher=False).items()} == {"c": 1, "b": 2, "a": 3}
    near = {name: [x + rng.normal(size=x.shape) for x in shared] for name in "abc"}
    assert all((x.rank.low, x.rank.high) == (1, 3) for x in crossed.ranked(near).values())


def test_equal_variants_share_a_rank_in_every_resample():
    """Two that are the same to the bit and one of the same answers in another order of bases' seeds, beside a better
    and a worse one."""
    rng = np.random.default_rng(0)
    same = [(rng.random((2, 3, 30)) < 0.6).astype(float) for _ in range(5)]
    scores = {"same": same, "best": [x * 0 + 1 for x in same], "again": same,
              "turned": [x[::-1] for x in same], "worst": [x * 0 for x in same]}  # fmt: skip
    ranks = {name: tuple(x.rank)[:3] for name, x in crossed.ranked(scores).items()}
    assert ranks == {"best": (1, 1, 1), "same": (2, 2, 2), "again": (2, 2, 2), "turned": (2, 2, 2), "worst": (5, 5, 5)}
    assert crossed.ranked(scores)["best"].score[:3] == (1.0, 1.0, 1.0)
    assert 0.1 + 0.2 > 0.3 and crossed.places(np.array([[0.1 + 0.2, 0.3, 0.2]])).tolist() == [[1, 1, 3]]


def test_rank_intervals_hold_the_true_rank():
    """Six variants, true scores a standard error of their differences apart: the rank among all bases and questions."""
    rng, inside, width = np.random.default_rng(5), 0, []
    for trial in range(40):
        common = simulated(rng, 1, (5, 1, 40), 1.0, 0.0, 1.0, 0.0)["0"]
        own = simulated(rng, 6, (5, 1, 40), 0.3, 0.0, 0.3, 1.0)
        scores = {v: [c + x - 0.25 * int(v) for c, x in zip(common, bases, strict=True)] for v, bases in own.items()}
        for v, found in crossed.ranked(scores, resamples=500, seed=trial).items():
            inside += found.rank.low <= 1 + int(v) <= found.rank.high
            width.append(found.rank.high - found.rank.low)
    assert inside / 240 >= 0.93 and np.mean(width) < 4.5


def test_documents_weigh_as_many_tokens_as_they_have():
    values = np.arange(24.0).reshape(1, 2, 12)
    weights = np.stack([np.arange(1, 13), np.full(12, 2)])
    value, _ = crossed.draws({"v": [values]}, weights=weights, resamples=10)
    assert value[0] == pytest.approx([np.average(values[0, 0], weights=weights[0]), values[0, 1].mean()])
    with pytest.raises(ValueError, match=r"weights are \[lengths, questions\], \(2, 12\); got \(12,\)"):
        crossed.draws({"v": [values]}, weights=weights[0])


def test_what_is_not_alike_is_not_compared():
    one, two = np.zeros((1, 2, 8)), np.zeros((2, 2, 8))
    with pytest.raises(ValueError, match=r"'b' have shapes \[\(2, 2, 8\)\], those of 'a' \[\(1, 2, 8\)\]"):
        crossed.ranked({"a": [one], "b": [two]})
    with pytest.raises(ValueError, match="'a' must be a list of bases"):
        crossed.ranked({"a": [one, two[..., :7]]})
    with pytest.raises(ValueError, match="no variant"):
        crossed.ranked({})
    few = crossed.ranked({"a": [two[..., : stats.FEWEST - 1]]})["a"]
    assert math.isnan(few.score.low) and math.isnan(few.rank.high) and few.rank.value == 1
