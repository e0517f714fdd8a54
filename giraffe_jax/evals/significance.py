"""p-values from intervals, and Holm's correction for multiple comparisons."""

import math
from collections.abc import Sequence

from giraffe_jax.evals.stats import Estimate, student


def student_p(t: float, freedom: int) -> float:
    """Returns the two-sided p of Student's t with whole degrees of freedom (Abramowitz, Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    odd, squared = freedom % 2, math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    series = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        series += term
        term *= squared * (k - 1) / k
    inside = math.sin(angle) * series
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


def interval_p(estimate: Estimate, confidence: float = 0.95) -> float:
    """Returns the two-sided p-value of "the mean is 0" by Student's t, from an estimate's interval; 1 without one.

    Meant for the expanded bootstrap: half the width of its interval over the t quantile is the standard error.
    """
    half = (estimate.high - estimate.low) / 2
    if not math.isfinite(half):
        return 1.0
    if half == 0:
        return float(estimate.value == 0)
    error = half / student(0.5 + confidence / 2, estimate.n - 1)
    return student_p(estimate.value / error, estimate.n - 1)


def holm(ps: Sequence[float], level: float = 0.05) -> list[bool]:
    """Returns which hypotheses are rejected, with a family-wise error rate of at most `level` (Holm 1979)."""
    rejected = [False] * len(ps)
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[i] > level / (len(ps) - rank):
            break
        rejected[i] = True
    return rejected
