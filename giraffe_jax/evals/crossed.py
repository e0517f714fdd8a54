"""Scores and ranks over base models, training seeds and questions, with intervals for how they vary with each.

A base is the model that training starts from, a seed is one training of it, and all bases, seeds and variants answer
the same questions. Questions of one base say nothing about another base, and most of the uncertainty of a ranking is
between bases. So the bootstrap resamples whole bases (with their seeds) and, independently, questions; the same ones
for all variants. NumPy only, as stats.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from giraffe_jax.evals.stats import FEWEST, Estimate, student

RESAMPLES = 4000
CONFIDENCE = 0.95
SAME = 1e-9  # scores closer than this, relative to the largest, count as ties: rounding must not rank them


class Ranked(NamedTuple):
    """A variant's score and its rank among all variants, 1 the best, each with its 95% interval."""

    score: Estimate
    rank: Estimate


def ranked(
    scores: Mapping[str, Sequence[np.ndarray]],
    *,
    higher: bool = True,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Ranked]:
    """Returns each variant's mean score and its rank.

    The score is the mean over bases of the mean over seeds, lengths and questions. The rank is one plus the number of
    better variants, in every resample too: ties share a rank, it is a whole number, and "2 to 5" means that one to four
    variants are better. Bounds of a score stay within the range of the measured values. If all values of a variant are
    equal, its score's interval has no width, since resamples cannot differ.

    What the intervals account for depends on the data: with several bases, the choice of bases, seeds and questions;
    with one base, the choice of seeds and questions; with one base and one seed, the choice of questions only.
    `n` is the number of bases, else of seeds, else of questions: the first of them that is more than one. With fewer
    than FEWEST questions the bounds are nan.

    Args:
      scores: for each variant its bases, each [seeds, lengths, questions]. The number of seeds may differ between
        bases, not between variants.
      higher: whether a higher score is better.
      weights: [lengths, questions], the weight of each question in the mean of its length: a document's tokens. None:
        equal weights.
      resamples: number of resamples of bases and questions.
      seed: of the resampling; the same input always gives the same intervals.

    Raises:
      ValueError: as `draws`.
    """
    value, drawn = (x.mean(-1) for x in draws(scores, weights=weights, resamples=resamples, seed=seed))
    first = next(iter(scores.values()))
    questions = first[0].shape[-1]
    n = next((size for size in (len(first), len(first[0])) if size > 1), questions)
    sign = 1.0 if higher else -1.0
    ranks, drawn_ranks = places(sign * value[None])[0], places(sign * drawn)
    measured = [np.concatenate([base.ravel() for base in bases]) for bases in scores.values()]
    least, most = min(x.min() for x in measured), max(x.max() for x in measured)
    out = {}
    for v, name in enumerate(scores):
        low, high = interval(np.clip(drawn[:, v], least, most))
        best, worst = interval(drawn_ranks[:, v], discrete=True)
        score = Estimate(float(value[v]), min(low, float(value[v])), max(high, float(value[v])), n)
        rank = Estimate(float(ranks[v]), min(best, float(ranks[v])), max(worst, float(ranks[v])), n)
        if questions < FEWEST:
            score, rank = (x._replace(low=math.nan, high=math.nan) for x in (score, rank))
        out[name] = Ranked(score, rank)
    return out


def draws(
    scores: Mapping[str, Sequence[np.ndarray]],
    *,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores [variants, lengths], and their resamples [resamples, variants, lengths].

    A resample adds two deviations to each score: that of resampled bases, averaged over questions, and that of
    resampled questions, averaged over bases. With a single base, seeds are resampled instead of bases. Each deviation
    is widened for its own sample size n (Hesterberg 2015): by Student's t over the normal quantile and by
    sqrt(n / (n - 1)); without that, intervals over five bases would cover only 83%. The residual variance of an answer,
    given its base and question, counts in both deviations. So the intervals are never too narrow because of it, but too
    wide if there is little other variance. Question i is resampled together at all lengths, and for seeds that ask
    questions of their own.

    With the same `seed`, tables with equal numbers of bases resample the same bases, and those with equal numbers of
    questions the same questions. The other arguments are those of `ranked`.

    Raises:
      ValueError: there is no variant, or shapes differ where they must not.
    """
    check(scores)
    bases = [np.stack(by_variant).astype(np.float64) for by_variant in zip(*scores.values(), strict=True)]
    units = np.stack([base.mean(1) for base in bases], 1) if len(bases) > 1 else bases[0]  # [variants, units, L, Q]
    count, questions = units.shape[1], units.shape[-1]
    weight = np.ones(units.shape[2:]) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != units.shape[2:]:
        raise ValueError(f"crossed: weights are [lengths, questions], {units.shape[2:]}; got {weight.shape}.")
    by_unit = (units * weight).sum(-1) / weight.sum(-1)
    value = by_unit.mean(1)
    drawn = np.broadcast_to(value, (resamples, *value.shape)).copy()
    if count > 1:
        times = np.random.default_rng([seed, 0]).multinomial(count, np.full(count, 1 / count), resamples) / count
        drawn += widening(count) * (np.einsum("ru,vul->rvl", times, by_unit) - value)
    if questions > 1:
        rng = np.random.default_rng([seed, 1, questions])
        times = rng.multinomial(questions, np.full(questions, 1 / questions), resamples).astype(np.float64)
        total = np.tensordot(times, units.mean(1) * weight, (1, 2)) / (times @ weight.T)[:, None]
        drawn += widening(questions) * (total - value)
    return value, drawn


def check(scores: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Raises ValueError if variants differ in their bases, seeds, lengths or questions."""
    if not scores:
        raise ValueError("crossed: there is no variant to score.")
    first, of_first = next(iter(scores.items()))
    want = [np.shape(base) for base in of_first]
    if not want or any(len(shape) != 3 or 0 in shape or shape[1:] != want[0][1:] for shape in want):
        raise ValueError(
            f"crossed: {first!r} must be a list of bases, each [seeds, lengths, questions] with the same lengths and "
            f"questions; got {want}."
        )
    for name, bases in scores.items():
        got = [np.shape(base) for base in bases]
        if got != want:
            raise ValueError(f"crossed: bases of {name!r} have shapes {got}, those of {first!r} {want}; compare alike.")


def places(scores: np.ndarray) -> np.ndarray:
    """Returns ranks [resamples, variants] of scores of that shape: one plus the number of higher scores."""
    least = SAME * max(1.0, float(np.abs(scores).max()))
    return np.stack([1 + (scores > scores[:, v : v + 1] + least).sum(1) for v in range(scores.shape[1])], 1)


def interval(drawn: np.ndarray, discrete: bool = False) -> tuple[float, float]:
    """Returns the bounds of the middle 95% of resamples [resamples, ...]; if `discrete`, values that occur in them."""
    tail = (1 - CONFIDENCE) / 2
    if discrete:
        return float(np.quantile(drawn, tail, method="lower")), float(np.quantile(drawn, 1 - tail, method="higher"))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def widening(n: int) -> float:
    """Returns the factor by which bootstrap deviations of a mean of n units must grow for a 95% interval."""
    p = 0.5 + CONFIDENCE / 2
    return math.sqrt(n / (n - 1)) * student(p, n - 1) / NormalDist().inv_cdf(p)
