"""Writes the findings of a report as sentences, from scores and paired differences; they claim only what these support.

Sentences are about four times the trained length, if measured, and the longest length at which anything works. Two
variants are compared as `paired.Difference` allows, with the number of documents or questions behind it. A large figure
is shown only if its variant is told apart from plain RoPE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report import paired
from giraffe_jax.report.metrics import PERPLEXITY
from giraffe_jax.report.paired import Difference
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import BY_POSITION, Table, interval, multiple, number, task_name

FLOOR = 0.30  # a share is at floor if the upper bound of the best variant's interval is below this
AHEAD = 4  # the first sentence is about this multiple of the trained length


@dataclass(frozen=True)
class Card:
    """A large figure and its caption."""

    figure: str
    label: str


def main_tables(tables: Sequence[Table]) -> list[Table]:
    """Returns the table of each task's first metric, if ranked: those that figures, verdict and forest plots use."""
    first = {table.task: table for table in reversed(tables) if table.metric != BY_POSITION}
    return [t for task in dict.fromkeys(t.task for t in tables) if (t := first[task]).metric.better is not None]


@dataclass(frozen=True)
class Said:
    """A sentence and its subject: `head` names task and length."""

    head: str
    text: str


def chief(tables: Sequence[Table]) -> list[Table]:
    """Returns the tables that the verdict is about: perplexity, and the first share of right answers above floor."""
    ranked = [t for t in main_tables(tables) if not floor(t) and lengths_that_matter(t)]
    return [t for t in ranked if t.metric == PERPLEXITY][:1] + [t for t in ranked if t.metric.share][:1]


def verdict(results: Results, tables: Sequence[Table]) -> list[Said]:
    """Returns a sentence on each chief table, at its first decisive length."""
    return [sentence(results, table, lengths_that_matter(table)[0]) for table in chief(tables)]


def more(results: Results, tables: Sequence[Table]) -> list[Said]:
    """Returns sentences on every task and decisive length that the verdict leaves out."""
    first = chief(tables)
    return [
        sentence(results, table, n)
        for table in main_tables(tables)
        if not floor(table)
        for n in lengths_that_matter(table)[1 if table in first else 0 :]
    ]


def cards(results: Results, tables: Sequence[Table]) -> list[Card]:
    """Returns a card per task whose best untrained variant (trained, if all are) is significantly better than plain."""
    out = []
    for table in main_tables(tables):
        lengths, plain = lengths_that_matter(table), results.baseline
        if floor(table) or not lengths or plain is None:
            continue
        n = lengths[0]
        order = [v for v in table.ranked(n) if v != plain]
        best = next((v for v in order if not results.trained[v]), next(iter(order), None))
        d = best and paired.difference(results, table.task, table.metric, n, best, plain)
        if not d or not d.better or (plain, n) not in table.cells:
            continue
        e = d.estimate
        if table.metric == PERPLEXITY:
            times, low, high = (math.exp(min(-x, 700.0)) for x in (e.value, e.high, e.low))
            label = (
                f"lower perplexity with {best} than with {plain} at {_at(table, n)} "
                f"[{_times(low)} to {_times(high)}, {d.pairs}]"
            )
            out.append(Card(_times(times), label))
        else:
            subject = f"{task_name(table.task).lower()} at {_at(table, n)} with {best}"
            label = f"{subject}; {number(table.cells[plain, n].estimate.value, table.metric.share)} with {plain}"
            label += f": {_amount(d)} [{_bounds(d)}, {d.pairs}]"
            out.append(Card(number(table.cells[d.variant, n].estimate.value, table.metric.share), label))
    return out


def beyond(table: Table) -> list[int]:
    """Returns the lengths beyond the trained one."""
    return [n for n in table.lengths if table.original_len is not None and n > table.original_len]


def lengths_that_matter(table: Table) -> list[int]:
    """Returns the decisive lengths: four times the trained one, if measured, and the longest with a variant above
    floor."""
    past = beyond(table)
    alive = [n for n in past if not _dead(table, n)] or past[:1]
    four = [n for n in past if n == AHEAD * (table.original_len or 0)]
    return list(dict.fromkeys([*four, *alive[-1:]]))


def floor(table: Table) -> str:
    """Returns a sentence on a task that the model cannot do even within its trained length; empty if it can."""
    trained_lengths = [n for n in table.lengths if table.original_len is not None and n <= table.original_len]
    if not trained_lengths or not table.metric.share or not _dead(table, trained_lengths[-1]):
        return ""
    n = trained_lengths[-1]
    best = table.ranked(n)[0]
    count = table.cells[best, n].estimate.n
    return (
        f"At floor: even at {_at(table, n)}, inside the trained length, the best variant, {best}, answers "
        f"{_shown(table, best, n)} of {count} right. A task that the model cannot do says nothing about positions, so "
        f"it is not shown (it would be if the interval reached {FLOOR:.0%}); tables.md and results.csv have its scores."
    )


def _dead(table: Table, length: int) -> bool:
    ends = [table.cells[v, length].estimate.high for v in table.variants if (v, length) in table.cells]
    return table.metric.share and bool(ends) and max(ends) < FLOOR


def sentence(results: Results, table: Table, length: int) -> Said:
    """Returns the sentence on a length: plain RoPE's score, and the best variants without and with training."""
    plain, trained = results.baseline, results.trained
    order = [v for v in table.ranked(length) if v != plain]
    groups = {
        "without training": [v for v in order if not trained[v]],
        "after training": [v for v in order if trained[v]],
    }
    parts = [_plain(table, plain, length)] if plain is not None and (plain, length) in table.cells else []
    few: list[Difference] = []
    for when, group in groups.items():
        if group:
            text, untold = _best(results, table, length, group, plain)
            parts.append(f"{when}, {text}")
            few += untold
    largest = max(few, key=lambda d: d.estimate.n, default=None)
    end = "." if largest is None else f". {paired.too_few(largest.estimate.n, largest.unit)}"
    return Said(f"{task_name(table.task)} at {_at(table, length)}", "; ".join(parts) + end)


def _plain(table: Table, plain: str, length: int) -> str:
    trained_lengths = [n for n in table.lengths if n <= (table.original_len or 0) and (plain, n) in table.cells]
    finite = math.isfinite(table.cells[plain, length].estimate.value)
    verb, end = ("answers", " right") if table.metric.share else ("has" if finite else "is", "")
    text = f"{plain} {verb} {_shown(table, plain, length)}{end}"
    if trained_lengths:
        before = table.cells[plain, trained_lengths[-1]].estimate.value
        text += f", against {number(before, table.metric.share)} at {trained_lengths[-1]:,}"
    return text


def _best(
    results: Results, table: Table, length: int, group: Sequence[str], plain: str | None
) -> tuple[str, list[Difference]]:
    """Returns the text on the first variant of a group (its score, its difference to plain, and the variants it cannot
    be told from), and the differences with too few pairs. It is called best only if it is ahead of all others."""
    best, text = group[0], ""
    others = paired.differences(results, table.task, table.metric, length, best, group[1:])
    few = [d for d in others if d.few]
    if plain is not None:
        d = paired.difference(results, table.task, table.metric, length, best, plain)
        if d is not None and math.isfinite(d.estimate.value):
            text += f", {_against(d)}"
            few += [d] if d.few else []
    alike, ahead = [d.variant for d in others if not d.worse and not d.few], [d.variant for d in others if d.worse]
    if alike:
        text += f", and cannot be told from {_some(alike)}"
    elif ahead and not few:
        text += f", ahead of {'all others' if len(ahead) == len(group) - 1 > 2 else _some(ahead)}"
    extreme = "highest" if table.metric.better == "high" else "lowest"
    verb = "has" if len(group) == 1 else "is best with" if len(ahead) == len(group) - 1 else f"has the {extreme},"
    return f"{best} {verb} {_shown(table, best, length)}{text}", few


def _against(d: Difference) -> str:
    """Returns a difference to plain RoPE in words: told apart, not told apart or, with too few pairs, its value."""
    if d.few:
        return f"{_amount(d, signed=True)} against {d.base}"
    if not d.apart:
        return f"not told from {d.base} (difference {_amount(d, signed=True)} [{_bounds(d, signed=True)}, {d.pairs}])"
    way = "above" if d.estimate.value > 0 else "below"
    return f"{_amount(d)} {way} {d.base} [{_bounds(d)}, {d.pairs}]"


def unit(d: Difference) -> str:
    """Returns the unit of a difference in words."""
    return "points" if d.metric.share else "nats a token" if d.metric.kind in ("perplexity", "nll") else d.metric.title


def shown(x: float, share: bool) -> str:
    """Returns a difference as text: shares in points, others with two decimals if small; with a true minus sign.

    A nonzero value is never rounded to zero, since its sign is what matters.
    """
    amount = 100 * x if share else x
    text = f"{amount:.0f}" if share else f"{amount:.2f}" if abs(amount) < 10 else f"{amount:,.1f}"
    if not text.strip("-0."):
        tiny = abs(amount) < 1e-9  # rounding of sums
        text = text.removeprefix("-") if tiny else f"{amount:.{-math.floor(math.log10(abs(amount)))}f}"
    return text.replace("-", "−")


def _amount(d: Difference, signed: bool = False) -> str:
    x = d.estimate.value if signed else abs(d.estimate.value)
    return f"{shown(x, d.metric.share)} {unit(d)}"


def _bounds(d: Difference, signed: bool = False) -> str:
    ends = [d.estimate.low, d.estimate.high]
    if not signed and d.estimate.value < 0:
        ends = [-d.estimate.high, -d.estimate.low]
    return " to ".join(shown(x, d.metric.share) for x in ends)


def _shown(table: Table, variant: str, length: int) -> str:
    e: Estimate = table.cells[variant, length].estimate
    span = interval(e, table.metric.share)
    return number(e.value, table.metric.share) + (f" ({span})" if span else "")


def _at(table: Table, length: int) -> str:
    times = multiple(length, table.original_len)
    return f"{length:,} tokens" + (f" ({times})" if times else "")


def _times(ratio: float) -> str:
    """Returns a ratio above one as text, with enough decimals not to be rounded to one."""
    if not math.isfinite(ratio) or ratio > 1e9:
        return "> 10⁹×"
    if ratio >= 20:
        return f"{ratio:.0f}×"
    return next((f"{text}×" for d in range(1, 12) if float(text := f"{ratio:.{d}f}") != 1), "1×")


def _some(names: Sequence[str]) -> str:
    return _list(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"])


def _list(parts: Iterable[str]) -> str:
    items = list(parts)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
