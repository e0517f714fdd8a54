"""Paired differences between variants on the same windows or examples, and what may be concluded from them.

Every sentence, mark, star and plot about two variants is decided here, by the interval of their paired difference:
they are told apart if it excludes zero (`apart`); with too few pairs for an interval, nothing is concluded (`few`).
Among many comparisons some intervals exclude zero by chance; `holm` says which differences survive the correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from giraffe_jax.evals import significance, stats
from giraffe_jax.evals.stats import FEWEST, LEVEL, Estimate
from giraffe_jax.report import metrics
from giraffe_jax.report.metrics import Metric
from giraffe_jax.report.scores import Results

Pair = tuple[str, int, frozenset[str]]


@dataclass(frozen=True)
class Difference:
    """A variant minus another one (`base`) in a metric: nats per token for perplexity, else the metric's own unit."""

    task: str
    variant: str
    base: str
    metric: Metric
    length: int
    estimate: Estimate
    p: float | None = None  # McNemar's p, consistent with the interval; None for means
    unit: str = "example"  # what `estimate.n` counts

    @property
    def few(self) -> bool:
        """Whether there are too few pairs for an interval, and so for any conclusion."""
        return math.isfinite(self.estimate.value) and not math.isfinite(self.estimate.low)

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart: the interval excludes zero."""
        return self.estimate.low > 0 or self.estimate.high < 0

    @property
    def better(self) -> bool:
        """Whether the variant is significantly better than the base."""
        return self.apart and (self.estimate.value > 0) == (self.metric.better == "high")

    @property
    def worse(self) -> bool:
        """Whether the variant is significantly worse than the base."""
        return self.apart and not self.better

    @property
    def pair(self) -> Pair:
        """Task, length and the two variants, in no order: the same for a difference and its negative."""
        return self.task, self.length, frozenset((self.variant, self.base))

    @property
    def pairs(self) -> str:
        """The number of independent pairs in words: "8 documents"."""
        return counted(self.estimate.n, self.unit)


def counted(n: int, unit: str) -> str:
    """Returns a number with its unit, in the plural if needed: "8 documents"."""
    return f"{n:,} {unit}{'s' * (n != 1)}"


def too_few(n: int, unit: str) -> str:
    """Returns the sentence used wherever there are fewer than `FEWEST` pairs."""
    return f"{counted(n, unit)} {'is' if n == 1 else 'are'} too few to tell variants apart; it takes {FEWEST}."


def difference(results: Results, task: str, metric: Metric, length: int, variant: str, base: str) -> Difference | None:
    """Returns the paired difference, variant minus base; None if the two share no window or example."""
    rows, base_rows = results.of(task, variant, length), results.of(task, base, length)
    unit, p = metrics.unit(rows), None
    if metric.kind == "perplexity":
        e = stats.paired_nll(rows, base_rows)
    elif metric.kind == "share" and unit != "document":
        e, p = stats.paired_share(rows, base_rows, metric.name)
    else:
        e = stats.paired_mean(rows, base_rows, metric.name)
    return Difference(task, variant, base, metric, length, e, p, unit) if e.n else None


def differences(
    results: Results, task: str, metric: Metric, length: int, base: str, variants: Iterable[str]
) -> list[Difference]:
    """Returns each variant's difference to `base`, best first; left out if not finite or without shared examples."""
    compared = [difference(results, task, metric, length, v, base) for v in variants if v != base]
    kept = [d for d in compared if d is not None and math.isfinite(d.estimate.value)]
    return sorted(kept, key=lambda d: d.estimate.value, reverse=metric.better == "high")


def holm(differences: Iterable[Difference]) -> dict[Pair, bool]:
    """Returns whether each pair is still told apart after Holm's correction over all pairs that are not `few`; p-values
    are McNemar's, or Student's t for means."""
    pairs = {d.pair: d for d in differences}
    able = {pair: d for pair, d in pairs.items() if not d.few}
    rejected = significance.holm([significance.interval_p(d.estimate) if d.p is None else d.p for d in able.values()])
    significant = {pair: d.apart and reject for (pair, d), reject in zip(able.items(), rejected, strict=True)}
    return {pair: significant.get(pair, False) for pair in pairs}


def chance(differences: Sequence[Difference]) -> str:
    """Returns sentences on how many pairs are told apart, how many would be by chance, and how many remain after Holm's
    correction."""
    able = [d for d in differences if not d.few]
    uncompared = {d.pair: d for d in differences if d.few}
    sentences = []
    if uncompared:
        largest = max(uncompared.values(), key=lambda d: d.estimate.n)
        count = "One pair" if len(uncompared) == 1 else f"{len(uncompared)} pairs"
        sentences.append(f"{count} cannot be compared: {too_few(largest.estimate.n, largest.unit)}")
    if not able:
        return " ".join(sentences)
    stay, apart = holm(able), {d.pair for d in able if d.apart}
    names = {True: "Student's t from the interval's width", False: "McNemar's exact test"}
    tests = " and ".join(dict.fromkeys(names[d.p is None] for d in able))
    pairs = f"{len(stay)} pairs are" if len(stay) > 1 else "One pair is"
    sentences.append(
        f"{pairs} compared here: if none differed, chance alone would tell about {LEVEL * len(stay):.1f} apart at 95%. "
        f"{len(apart)} {'is' if len(apart) == 1 else 'are'} told apart, and {sum(stay.values())} (starred) still under "
        f"Holm's correction over all {len(stay)}, by {tests}."
    )
    needed, largest = stats.fewest_pairs(LEVEL / len(stay)), max(able, key=lambda d: d.estimate.n)
    if all(d.p is not None for d in able) and largest.estimate.n < needed:
        sentences.append(f"{largest.pairs} cannot give a star among so many; it takes {needed}.")
    return " ".join(sentences)


def ranked(values: dict[str, float], metric: Metric) -> list[str]:
    """Returns the variants with finite values, best first; none if the metric is not ranked."""
    finite = {v: x for v, x in values.items() if math.isfinite(x)}
    if metric.better is None:
        return []
    return sorted(finite, key=lambda v: finite[v], reverse=metric.better == "high")


def leader(results: Results, task: str, metric: Metric, length: int, order: Sequence[str]) -> str | None:
    """Returns the first of `order` (variants, best first) if it can be told from the second, else None."""
    if len(order) < 2:
        return None
    d = difference(results, task, metric, length, order[0], order[1])
    return order[0] if d is not None and d.better else None
