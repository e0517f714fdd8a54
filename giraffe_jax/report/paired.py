"""Differences between variants on the same windows or examples, and what may be said from them.

Two variants are told apart where the 95% interval of their paired difference excludes zero; for shares McNemar's
exact test must agree (p < 0.05), and there must be at least `FEWEST` pairs: fewer say nothing. Of many comparisons at
once some come out so by chance; `holm` says which do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from giraffe_jax.evals import stats
from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report.metrics import Metric
from giraffe_jax.report.scores import Results

FEWEST = 5
Pair = tuple[str, int, frozenset[str]]


@dataclass(frozen=True)
class Difference:
    """A variant less another in a metric: nats per token for perplexity, else the metric's own unit."""

    task: str
    variant: str
    base: str
    metric: Metric
    length: int
    estimate: Estimate
    p: float | None = None

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart."""
        e = self.estimate
        return e.n >= FEWEST and (e.low > 0 or e.high < 0) and (self.p is None or self.p < 0.05)

    @property
    def better(self) -> bool:
        """Whether the variant is better than the other beyond what chance gives."""
        return self.apart and (self.estimate.value > 0) == (self.metric.better == "high")

    @property
    def pair(self) -> Pair:
        """Which two are compared where, whichever is less the other."""
        return self.task, self.length, frozenset((self.variant, self.base))


def difference(results: Results, task: str, metric: Metric, length: int, variant: str, base: str) -> Difference | None:
    """The paired difference, None where the two share no window or example."""
    mine, other = results.of(task, variant, length), results.of(task, base, length)
    p = None
    if metric.kind == "perplexity":
        e = stats.paired_nll(mine, other)
    elif metric.kind == "share":
        e, p = stats.paired_share(mine, other, metric.name)
    else:
        e = stats.paired_mean(mine, other, metric.name)
    return Difference(task, variant, base, metric, length, e, p) if e.n else None


def differences(
    results: Results, task: str, metric: Metric, length: int, base: str, variants: Iterable[str]
) -> list[Difference]:
    """Each variant against one, best first; those that share nothing with it, or are not finite, left out."""
    found = [difference(results, task, metric, length, v, base) for v in variants if v != base]
    kept = [d for d in found if d is not None and math.isfinite(d.estimate.value)]
    return sorted(kept, key=lambda d: d.estimate.value, reverse=metric.better == "high")


def holm(found: Iterable[Difference]) -> dict[Pair, bool]:
    """Whether each pair is still apart under Holm's correction over all pairs: McNemar's p, of means Student's t."""
    pairs = {d.pair: d for d in found}
    rejected = stats.holm([stats.interval_p(d.estimate) if d.p is None else d.p for d in pairs.values()])
    return {pair: d.apart and stays for (pair, d), stays in zip(pairs.items(), rejected, strict=True)}


def chance(found: Sequence[Difference]) -> str:
    """How many are told apart, how many chance alone would, and how many stay so under Holm's correction."""
    stay, apart = holm(found), {d.pair for d in found if d.apart}
    names = {True: "Student's t from the interval's width", False: "McNemar's exact test"}
    tests = " and ".join(dict.fromkeys(names[d.p is None] for d in found))
    pairs = f"{len(stay)} pairs are" if len(stay) > 1 else "One pair is"
    return (
        f"{pairs} compared here: if none differed, chance alone would tell about {0.05 * len(stay):.1f} apart at 95%. "
        f"{len(apart)} {'is' if len(apart) == 1 else 'are'} told apart, and {sum(stay.values())} (starred) still under "
        f"Holm's correction over all {len(stay)}, by {tests}."
    )


def ranked(values: dict[str, float], metric: Metric) -> list[str]:
    """The variants best first, those without a finite value left out; none where the metric is not ranked."""
    finite = {v: x for v, x in values.items() if math.isfinite(x)}
    if metric.better is None:
        return []
    return sorted(finite, key=lambda v: finite[v], reverse=metric.better == "high")


def leader(results: Results, task: str, metric: Metric, length: int, order: Sequence[str]) -> str | None:
    """The first of variants ranked best first, if it can be told from the second."""
    if len(order) < 2:
        return None
    d = difference(results, task, metric, length, order[0], order[1])
    return order[0] if d is not None and d.better else None
