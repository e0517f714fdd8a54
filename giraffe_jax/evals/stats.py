"""Confidence intervals: reports show every score with its number of examples and a 95% interval, computed here.

Proportions (retrieval) get Wilson's score interval, which stays inside [0, 1] and does not collapse to a point when
every answer is right. Means (losses, perplexity) get a bootstrap, which stays within the range of the values: no
interval of a loss reaches below zero. The bootstrap resamples whole documents, since windows of one document are far
from independent. Two models evaluated on the same examples are compared by `paired_nll`, `paired_mean` and
`paired_share`: a hard window is hard for both, so the difference has a far narrower interval than either score. Two
models count as different only if the interval of their difference excludes zero. NumPy only: reports do not need JAX.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

By = Literal["token", "window", "document"]
LEVEL = 0.05


def fewest_pairs(level: float = LEVEL) -> int:
    """Returns the fewest pairs with which a difference can be significant at a level: the least n with 2^(1-n) < level.

    For two equally good models, all n differences have the same sign with probability 2^(1-n), whatever their
    distribution. That is the smallest p that the sign-flip test and McNemar's test can give. It also bounds the false
    positives of a bootstrap from below, since resampled means stay within the range of the values. At 5% it is 6: with
    five pairs, one comparison in sixteen would look different by chance.
    """
    return math.floor(1 - math.log2(level)) + 1


FEWEST = fewest_pairs()  # differences and bootstraps of fewer examples get no interval


class Estimate(NamedTuple):
    """A score, its interval (nan bounds if there is none) and the number of independent examples."""

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
      sums: per unit (document or window), the sum of the averaged quantity; nats for a loss.
      weights: per unit, the number of tokens in that sum.
      confidence: nominal coverage of the interval.
      resamples: number of resamples of the units, with replacement.
      seed: of the resampling; the same input always gives the same interval.
      expanded: widens the percentiles for small samples (Hesterberg 2015): by Student's t over the normal quantile, and
        by sqrt(n / (n - 1)) for the bias of the sample's spread. With five normal units the interval then covers the
        mean 91% of the time, against 83% without (False); with sixteen, 95% against 92%.
      fewest: least number of units for an interval; with fewer the bounds are nan.
    """
    total, weight = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    if total.shape != weight.shape or total.ndim != 1:
        raise ValueError(f"bootstrap_mean: one weight per sum, got {total.shape} and {weight.shape}.")
    n = len(total)
    value = float(total.sum() / weight.sum()) if n else math.nan
    if n < max(2, fewest) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    # Draws counts per unit instead of indices, at most a million at a time to bound memory.
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
    """Returns the p-quantile of Student's t, within 0.1% from 4 degrees of freedom up (Abramowitz, Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


def mean(rows: Iterable[Mapping[str, Any]], metric: str, **bootstrap: Any) -> Estimate:
    """Returns the mean of a metric over the rows that have it; the bootstrap resamples documents if rows name them,
    else rows."""
    units = _by_document((row.get("document"), float(row["metrics"][metric]), 1.0) for row in _having(rows, metric))
    return bootstrap_mean(*units, **bootstrap)


def _having(rows: Iterable[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["metrics"].get(metric) is not None]


def _by_document(values: Iterable[tuple[Any, float, float]]) -> tuple[list[float], list[float]]:
    """Returns sums and weights of (document, value, weight) per document; without a document (None), each is a unit."""
    grouped: dict[Any, list[float]] = {}
    for i, (document, value, weight) in enumerate(values):
        entry = grouped.setdefault(("", i) if document is None else str(document), [0.0, 0.0])
        entry[0] += value * weight
        entry[1] += weight
    return [total for total, _ in grouped.values()], [weight for _, weight in grouped.values()]


def mean_nll(rows: Iterable[Mapping[str, Any]], by: By = "token", **bootstrap: Any) -> Estimate:
    """Returns the mean loss of perplexity rows, in nats per token, and its bootstrap interval.

    `by` sets the weights: "token" weighs every scored token equally; "window" every window, whatever it scores (as the
    scripts of YaRN and LongLoRA do); "document" every document. The bootstrap resamples documents, and `n` counts them:
    windows of one document are not independent. A row with a non-finite loss (null) makes the result nan.
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
    """Returns exp of `mean_nll` and of its bounds; infinite if exp overflows."""
    mean = mean_nll(rows, by, **bootstrap)
    return Estimate(_exp(mean.value), _exp(mean.low), _exp(mean.high), mean.n)


def share(rows: Iterable[Mapping[str, Any]], metric: str) -> Estimate:
    """Returns the mean of a metric within 0..1, with Wilson's interval; rows without the metric are skipped.

    For a metric of zeros and ones that is the share of ones. For fractions the interval is conservative: zeros and ones
    have the largest variance of all values in 0..1 with the same mean. Rows of one document count as one example.
    """
    values = [(row.get("document"), float(row["metrics"][metric]), 1.0) for row in _having(rows, metric)]
    if not values:
        return wilson(0, 0)
    n, total = len(_by_document(values)[0]), sum(value for _, value, _ in values)
    return wilson(total if n == len(values) else min(total / len(values), 1.0) * n, n)


def paired_nll(rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], **bootstrap: Any) -> Estimate:
    """Returns the mean loss of perplexity rows minus that of `base` on the same windows, in nats per token.

    The bootstrap resamples documents. exp of the result is the ratio of perplexities.
    """
    pairs = paired(rows, base, "nll")
    units = _by_document((document, value - base_value, tokens) for document, tokens, value, base_value in pairs)
    return bootstrap_mean(*units, **bootstrap)


def paired_mean(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str, **bootstrap: Any
) -> Estimate:
    """Returns the mean of a metric minus that of `base` on the same examples; the bootstrap resamples documents if rows
    name them, else examples."""
    pairs = paired(rows, base, metric)
    return bootstrap_mean(*_by_document((d, value - base_value, 1.0) for d, _, value, base_value in pairs), **bootstrap)


def paired_share(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str
) -> tuple[Estimate, float]:
    """Returns the share of right answers minus that of `base` on the same examples, and McNemar's exact p.

    The interval is that of `difference_of_shares`, extended to include zero if McNemar's p is not below 5%, so that the
    two never contradict each other. With fewer than FEWEST examples its bounds are nan.
    """
    pairs = paired(rows, base, metric)
    gained = sum(value > base_value for _, _, value, base_value in pairs)
    lost = sum(value < base_value for _, _, value, base_value in pairs)
    e, p = difference_of_shares(gained, lost, len(pairs)), mcnemar(gained, lost)
    if e.n < FEWEST:
        return e._replace(low=math.nan, high=math.nan), p
    return e if p < LEVEL else e._replace(low=min(e.low, 0.0), high=max(e.high, 0.0)), p


def difference_of_shares(gained: int, lost: int, n: int, confidence: float = 0.95) -> Estimate:
    """Returns (gained - lost) / n with the adjusted Wald interval for paired shares (Bonett and Price 2012).

    Of n examples, `gained` are right only for the first, `lost` only for the second. The interval's centre is shrunk
    towards 0, and its width stays positive if no example differs.
    """
    if n < 2:
        return Estimate((gained - lost) / n if n else math.nan, math.nan, math.nan, n)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half), n)


def mcnemar(gained: int, lost: int) -> float:
    """Returns McNemar's exact two-sided p: the probability that gained + lost coin flips split at least as unevenly."""
    n, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def paired(
    rows: Iterable[Mapping[str, Any]], base: Iterable[Mapping[str, Any]], metric: str
) -> list[tuple[Any, float, float, float]]:
    """Returns (document, tokens, value, value of `base`) for each example in both: the same window or the same prompt.

    If one side has several rows of an example (from several training seeds), their mean is used. Null becomes nan.
    """
    values, base_values = _by_example(rows, metric), _by_example(base, metric)
    return [
        (key[0], key[-1] or 1.0, float(values[key]), float(base_values[key])) for key in values if key in base_values
    ]


def _by_example(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[tuple[Any, ...], float]:
    by_example: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if metric in row["metrics"]:
            value = row["metrics"][metric]
            example = tuple(row.get(name) for name in ("document", "window", "prompt", "example"))
            key = (*example, row["metrics"].get("tokens"))
            by_example.setdefault(key, []).append(math.nan if value is None else float(value))
    return {key: sum(values) / len(values) for key, values in by_example.items()}


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def effective_length(bounds: Mapping[int, float], threshold: float) -> int | None:
    """Returns the longest length for which its bound and those of all shorter lengths reach `threshold`; None if none.

    `bounds` maps lengths to the lower ends of intervals; nan counts as below every threshold.
    """
    longest = None
    for length in sorted(bounds):
        if not bounds[length] >= threshold:
            break
        longest = length
    return longest


def fewest_for(threshold: float, confidence: float = 0.95) -> int:
    """Returns how many examples, all answered right, raise Wilson's lower bound n / (n + z^2) to a threshold."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return math.ceil(threshold / (1 - threshold) * z * z)
