"""Intervals: every score is shown with its number of examples and a 95% interval, and these are the intervals.

Proportions (retrieval) get Wilson's score interval, which stays inside [0, 1] and does not collapse to a point when
every answer is right. Means (losses, perplexity) get a bootstrap, which stays inside the values: a loss has no interval
below zero. What is drawn again are whole documents, because what stands in one is far from independent. Two models that
read the same are compared by `paired_nll`, `paired_mean` and `paired_share`: what makes a window hard is hard for both,
so differences are far sharper than the two scores. A pair is told apart where the interval of its difference excludes
zero, and by nothing else. NumPy only: reports are made where JAX need not be installed or started.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

By = Literal["token", "window", "document"]
LEVEL = 0.05


def fewest_pairs(level: float = LEVEL) -> int:
    """Returns how many pairs it takes before any difference can be told at a level: the least n of 2^(1-n) < level.

    Of two models that differ in nothing, all n differences have one sign with probability 2^(1-n), whatever else they
    are. That is the least p of the sign-flip test and of McNemar's, and how often a bootstrap at least excludes zero,
    for no resampled mean leaves the range of the values. At 5% it is 6: of five, one in sixteen looks different.
    """
    return math.floor(1 - math.log2(level)) + 1


FEWEST = fewest_pairs()  # examples of a difference, or of a bootstrap: fewer have no interval


class Estimate(NamedTuple):
    """A score, its interval and the number of independent examples behind it; `nan` bounds where there is none."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> Estimate:
    """Returns the share `successes / n` with Wilson's score interval (Wilson 1927; no continuity correction).

    With n = 0 all three are nan. ValueError if `successes` is not within 0..n.
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: successes must be within 0..n, got {successes} of {n}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding must not move it past the share itself.
    return Estimate(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share), n)


def bootstrap_mean(
    sums: Sequence[float],
    weights: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    expanded: bool = True,
    fewest: int = FEWEST,
) -> Estimate:
    """Returns the weighted mean `sum(sums) / sum(weights)` with a percentile bootstrap interval.

    Args:
      sums: per unit (document or window), the sum of what is averaged; nats for a loss.
      weights: per unit, how many tokens that sum is over.
      confidence: share of the resampled means inside the interval.
      resamples: how many times the units are drawn again, with replacement.
      seed: of the draws; the same numbers always give the same interval.
      expanded: takes percentiles further out, by as much as Student's t is wider than the normal distribution and as
        the spread of n numbers is below that of what they were drawn from (Hesterberg 2015). Of the means of five
        normal units it holds 91%, percentiles as they are (False) 83%; of sixteen 95% and 92%.
      fewest: units that it takes for an interval; fewer have nan bounds.
    """
    total, weight = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    if total.shape != weight.shape or total.ndim != 1:
        raise ValueError(f"bootstrap_mean: one weight per sum, got {total.shape} and {weight.shape}.")
    n = len(total)
    value = float(total.sum() / weight.sum()) if n else math.nan
    if n < max(2, fewest) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    # How often each unit was drawn, instead of which; a million counts at a time, however many units there are.
    at_once = max(1, 10**6 // n)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    counts = (rng.multinomial(n, np.full(n, 1 / n), size) for size in sizes)
    means = np.concatenate([count @ total / (count @ weight) for count in counts])
    tail = (1 - confidence) / 2
    if expanded:
        tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student(1 - tail, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n)


def student(p: float, freedom: int) -> float:
    """Returns the quantile p of Student's t, within 0.1% from 4 degrees of freedom up (Abramowitz, Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


def mean(rows: Iterable[Mapping[str, Any]], metric: str, **bootstrap: Any) -> Estimate:
    """Returns the mean of a metric over rows that have it, with a bootstrap interval over documents where rows name
    them, else over rows."""
    units = _by_document((row.get("document"), float(row["metrics"][metric]), 1.0) for row in _having(rows, metric))
    return bootstrap_mean(*units, **bootstrap)


def _having(rows: Iterable[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["metrics"].get(metric) is not None]


def _by_document(values: Iterable[tuple[Any, float, float]]) -> tuple[list[float], list[float]]:
    """The sums and weights of (document, value, weight) by document; one of no document, None, is a unit by itself."""
    grouped: dict[Any, list[float]] = {}
    for i, (document, value, weight) in enumerate(values):
        entry = grouped.setdefault(("", i) if document is None else str(document), [0.0, 0.0])
        entry[0] += value * weight
        entry[1] += weight
    return [total for total, _ in grouped.values()], [weight for _, weight in grouped.values()]


def mean_nll(rows: Iterable[Mapping[str, Any]], by: By = "token", **bootstrap: Any) -> Estimate:
    """Returns the mean loss in nats of perplexity rows, and its bootstrap interval.

    `by` says what is averaged: "token" weighs every scored token alike; "window" every window alike, whatever it scores
    (what YaRN's script and LongLoRA's do); "document" every document alike. Documents are resampled, and `n` counts
    them: windows of one document are not several. A row whose loss is not finite (null) makes it all nan.
    """
    values = []
    for row in rows:
        nll, tokens = row["metrics"]["nll"], float(row["metrics"]["tokens"])
        values.append((row.get("document"), math.nan if nll is None else nll, 1.0 if by == "window" else tokens))
    sums, weights = _by_document(values)
    if by == "document":
        sums, weights = [total / weight for total, weight in zip(sums, weights, strict=True)], [1.0] * len(sums)
    return bootstrap_mean(sums, weights, **bootstrap)


def perplexity(rows: Iterable[Mapping[str, Any]], by: By = "token", **bootstrap: Any) -> Estimate:
    """Returns exp of `mean_nll` and of both its bounds; infinite where the exponential overflows."""
    mean = mean_nll(rows, by, **bootstrap)
    return Estimate(_exp(mean.value), _exp(mean.low), _exp(mean.high), mean.n)


def share(rows: Iterable[Mapping[str, Any]], metric: str) -> Estimate:
    """Returns the mean of a metric within 0..1, with Wilson's interval; rows without the metric do not count.

    Of a metric that is 0 or 1 that is the share of ones; the interval of fractions is wider than it need be, since
    nothing within 0..1 spreads as far as zeros and ones of the same mean. Rows that name documents count as many.
    """
    values = [(row.get("document"), float(row["metrics"][metric]), 1.0) for row in _having(rows, metric)]
    if not values:
        return wilson(0, 0)
    n, total = len(_by_document(values)[0]), sum(value for _, value, _ in values)
    return wilson(total if n == len(values) else min(total / len(values), 1.0) * n, n)


def paired_nll(rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], **bootstrap: Any) -> Estimate:
    """Returns the mean loss of perplexity rows less that of `base` on the same windows, nats per token.

    Documents are resampled. exp of it is the ratio of perplexities.
    """
    pairs = paired(rows, base, "nll")
    units = _by_document((document, mine - other, tokens) for document, tokens, mine, other in pairs)
    return bootstrap_mean(*units, **bootstrap)


def paired_mean(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str, **bootstrap: Any
) -> Estimate:
    """Returns the mean of a metric less that of `base` on the same examples; documents are resampled where rows name
    them, else examples."""
    pairs = paired(rows, base, metric)
    return bootstrap_mean(*_by_document((d, mine - other, 1.0) for d, _, mine, other in pairs), **bootstrap)


def paired_share(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str
) -> tuple[Estimate, float]:
    """Returns the share right less that of `base` on the same examples with its interval, and McNemar's exact p.

    The interval is that of `difference_of_shares`, reaching to zero where McNemar's p is not below 5%, so that the two
    never say different things; nan of fewer than FEWEST examples.
    """
    pairs = paired(rows, base, metric)
    gained = sum(mine > other for _, _, mine, other in pairs)
    lost = sum(mine < other for _, _, mine, other in pairs)
    e, p = difference_of_shares(gained, lost, len(pairs)), mcnemar(gained, lost)
    if e.n < FEWEST:
        return e._replace(low=math.nan, high=math.nan), p
    return e if p < LEVEL else e._replace(low=min(e.low, 0.0), high=max(e.high, 0.0)), p


def difference_of_shares(gained: int, lost: int, n: int, confidence: float = 0.95) -> Estimate:
    """Returns (gained - lost) / n with the adjusted Wald interval for paired shares (Bonett and Price 2012).

    `gained` examples of n are right only for the first, `lost` only for the second. The interval's middle is drawn
    towards 0, and it does not collapse where nothing differs.
    """
    if n < 2:
        return Estimate((gained - lost) / n if n else math.nan, math.nan, math.nan, n)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half), n)


def mcnemar(gained: int, lost: int) -> float:
    """Returns McNemar's exact two-sided p: how often a fair coin splits the examples that differ so unevenly."""
    n, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def paired(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str
) -> list[tuple[Any, float, float, float]]:
    """Returns (document, tokens, value, value of `base`) of what both read: the same window, or the same prompt.

    A side's rows of one example, from several seeds of its training, count as their mean. Null is nan.
    """
    mine, other = _by_example(rows, metric), _by_example(base, metric)
    return [(key[0], key[-1] or 1.0, float(mine[key]), float(other[key])) for key in mine if key in other]


def _by_example(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if metric in row["metrics"]:
            value = row["metrics"][metric]
            example = tuple(row.get(name) for name in ("document", "window", "prompt", "example"))
            key = (*example, row["metrics"].get("tokens"))
            found.setdefault(key, []).append(math.nan if value is None else float(value))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def effective_length(bounds: Mapping[int, float], threshold: float) -> int | None:
    """Returns the longest length where the bound of it and of all shorter ones is `threshold` or more, None if none is.

    `bounds` are lower ends of intervals by length; nan is below every threshold.
    """
    longest = None
    for length in sorted(bounds):
        if not bounds[length] >= threshold:
            break
        longest = length
    return longest


def fewest_for(threshold: float, confidence: float = 0.95) -> int:
    """Returns how many examples, all right, it takes for Wilson's lower bound, n / (n + z^2), to reach a threshold."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return math.ceil(threshold / (1 - threshold) * z * z)
