"""Intervals: every score is shown with its number of examples and a 95% interval, and these are the intervals.

Proportions (retrieval) get Wilson's score interval, which stays inside [0, 1] and does not collapse to a point when
every answer is right. Mean losses (perplexity) get a bootstrap over whole documents or windows, because the tokens
inside one are far from independent. NumPy only: reports are made where JAX need not be installed or started.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

By = Literal["token", "window", "document"]


class Estimate(NamedTuple):
    """A score, its interval and the number of examples behind it; `nan` bounds where there is no interval (n < 2)."""

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
) -> Estimate:
    """Returns the weighted mean `sum(sums) / sum(weights)` with a percentile bootstrap interval.

    Args:
      sums: per unit (document or window), the sum of what is averaged; nats for a loss.
      weights: per unit, how many tokens that sum is over.
      confidence: share of the resampled means inside the interval.
      resamples: how many times the units are drawn again, with replacement.
      seed: of the draws; the same numbers always give the same interval.
    """
    total, weight = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    if total.shape != weight.shape or total.ndim != 1:
        raise ValueError(f"bootstrap_mean: one weight per sum, got {total.shape} and {weight.shape}.")
    n = len(total)
    value = float(total.sum() / weight.sum()) if n else math.nan
    if n < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    # How often each unit was drawn, instead of which: one small vector per resample, however many units.
    counts = (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(resamples))
    means = [count @ total / (count @ weight) for count in counts]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), n)


def normal_mean(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Returns the plain mean with the normal approximation's interval, mean +- z s / sqrt(n)."""
    x = np.asarray(values, np.float64)
    n = len(x)
    value = float(x.mean()) if n else math.nan
    if n < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, value - half, value + half, n)


def mean_nll(rows: Iterable[Mapping[str, Any]], by: By = "token", **bootstrap: Any) -> Estimate:
    """Returns the mean loss in nats of perplexity rows, and its bootstrap interval.

    `by` says what is averaged: "token" weighs every scored token alike; "window" every window alike, whatever it scores
    (what YaRN's script and LongLoRA's do); "document" every document alike. Documents are resampled where there are at
    least two, otherwise windows; `n` counts what was resampled. A row whose loss is not finite (null) makes it all nan.
    """
    rows = list(rows)
    nll = [math.nan if r["metrics"]["nll"] is None else float(r["metrics"]["nll"]) for r in rows]
    tokens = [float(r["metrics"]["tokens"]) for r in rows]
    names = [str(r.get("document", i)) for i, r in enumerate(rows)]
    weights = [1.0] * len(rows) if by == "window" else tokens
    units = names if len(set(names)) > 1 else [str(i) for i in range(len(rows))]
    grouped: dict[str, list[float]] = {}
    for unit, loss, weight in zip(units, nll, weights, strict=True):
        entry = grouped.setdefault(unit, [0.0, 0.0])
        entry[0] += loss * weight
        entry[1] += weight
    if by == "document" and len(set(names)) > 1:
        grouped = {unit: [total / weight, 1.0] for unit, (total, weight) in grouped.items()}
    return bootstrap_mean([t for t, _ in grouped.values()], [w for _, w in grouped.values()], **bootstrap)


def perplexity(rows: Iterable[Mapping[str, Any]], by: By = "token", **bootstrap: Any) -> Estimate:
    """Returns exp of `mean_nll` and of both its bounds; infinite where the exponential overflows."""
    mean = mean_nll(rows, by, **bootstrap)
    return Estimate(_exp(mean.value), _exp(mean.low), _exp(mean.high), mean.n)


def share(rows: Iterable[Mapping[str, Any]], metric: str) -> Estimate:
    """Returns the share of rows whose `metric` is 1, with Wilson's interval; rows without the metric do not count."""
    values = [float(r["metrics"][metric]) for r in rows if r["metrics"].get(metric) is not None]
    return wilson(sum(values), len(values))


def merge_bins(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, int, float, int]]:
    """Returns the loss-by-position curve of perplexity rows: (low, high, mean nats, tokens) per bin, ordered.

    Bin `low..high` holds the tokens with that many tokens of context before them, `high` excluded.
    """
    bins: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        for low, high, total, n in row.get("bins", ()):
            entry = bins.setdefault((int(low), int(high)), [0.0, 0])
            entry[0] += math.nan if total is None else total
            entry[1] += n
    return [(low, high, total / n, int(n)) for (low, high), (total, n) in sorted(bins.items()) if n]


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
