"""Scores -> sentences: what came out, said from the numbers, so that the page's first lines can be trusted.

Sentences cover every length beyond the trained one; the large figure is where plain RoPE is furthest behind, and says
at what length that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from giraffe_jax.report.scores import PERPLEXITY, Results, Score
from giraffe_jax.report.tables import Table, interval, metric_name, multiple, number, task_name


@dataclass(frozen=True)
class Finding:
    """A headline: one large figure, what it is, and the sentence that says it in full."""

    figure: str
    label: str
    task: str
    sentence: str


def findings(results: Results, made: Sequence[Table]) -> list[Finding]:
    """One finding per table of a task's first metric, in order; none where no length is beyond the trained one."""
    out, seen = [], set()
    for table in made:
        if table.task in seen:
            continue
        seen.add(table.task)
        finding = (
            _loss(results, table) if table.metric == PERPLEXITY else _share(results, table) if table.share else None
        )
        if finding is not None:
            out.append(finding)
    return out


def beyond(table: Table) -> list[int]:
    """The lengths past the trained one."""
    return [n for n in table.lengths if table.original_len is not None and n > table.original_len]


def best_variant(table: Table, variants: Iterable[str], lengths: Sequence[int]) -> str | None:
    """The variant with the best mean over the lengths (of log perplexity, or of the share right), of those complete."""
    totals = {}
    for variant in variants:
        values = [table.cells[variant, n].estimate.value for n in lengths if (variant, n) in table.cells]
        if lengths and len(values) == len(lengths) and all(math.isfinite(x) for x in values):
            totals[variant] = sum(values) if table.share else -sum(math.log(x) for x in values)
    return max(totals, key=lambda v: totals[v]) if totals else None


def _loss(results: Results, table: Table) -> Finding | None:
    lengths, plain = beyond(table), results.baseline
    others = [v for v in table.variants if v != plain]
    best = best_variant(table, others, lengths)
    if plain is None or best is None or any((plain, n) not in table.cells for n in lengths):
        return None
    ratios = {n: _value(table, plain, n) / _value(table, best, n) for n in lengths}
    peak = max(lengths, key=lambda n: (math.isfinite(ratios[n]), n))
    inside = [n for n in table.lengths if n not in lengths and (plain, n) in table.cells]
    start = f" from {_shown(table, plain, inside[-1])} at {inside[-1]:,} tokens" if inside else ""
    sentence = (
        f"Beyond its trained length of {table.original_len:,} tokens, {plain} goes{start} to "
        f"{_list(f'{_shown(table, plain, n)} at {_at(table, n)}' for n in lengths)}. "
        f"The best variant, {best}, has {_list(_shown(table, best, n) for n in lengths)} there."
    )
    sentence += _best_untrained(results, table, best, others, lengths)
    return Finding(
        _times(ratios[peak]),
        f"lower perplexity with {best} than with {plain} at {_at(table, peak)}",
        task_name(table.task),
        sentence,
    )


def _share(results: Results, table: Table) -> Finding | None:
    lengths, plain = beyond(table), results.baseline
    others = [v for v in table.variants if v != plain]
    best = best_variant(table, others, lengths)
    if best is None:
        return None
    last = lengths[-1]
    plain = plain or ""
    known = all((plain, n) in table.cells for n in lengths)
    where = _list(_at(table, n) for n in lengths)
    sentence = f"At {where}, {best} gives {_list(_shown(table, best, n) for n in lengths)} right answers"
    if known:
        sentence += f"; {plain} gives {_list(_shown(table, plain, n) for n in lengths)}"
    n = table.n(last)
    sentence += f" ({metric_name(table.metric).removeprefix('answers right, ')}" + (f", n={n}" if n else "") + ")."
    sentence += _best_untrained(results, table, best, others, lengths)
    top = max(lengths, key=lambda n: (_value(table, best, n) - (_value(table, plain, n) if known else 0), n))
    label = f"{task_name(table.task).lower()} at {_at(table, top)} with {best}"
    if known:
        label += f"; {number(_value(table, plain, top), True)} with {plain}"
    return Finding(number(_value(table, best, top), True), label, task_name(table.task), sentence)


def _best_untrained(results: Results, table: Table, best: str, others: Sequence[str], lengths: Sequence[int]) -> str:
    if not results.trained[best]:
        return ""
    free = best_variant(table, [v for v in others if not results.trained[v]], lengths)
    if free is None:
        return ""
    return f" Best without training: {free}, {_list(_shown(table, free, n) for n in lengths)}."


def _value(table: Table, variant: str, length: int) -> float:
    return table.cells[variant, length].estimate.value


def _shown(table: Table, variant: str, length: int) -> str:
    score: Score = table.cells[variant, length]
    span = interval(score.estimate, table.share)
    return number(score.estimate.value, table.share) + (f" ({span})" if span else "")


def _at(table: Table, length: int) -> str:
    times = multiple(length, table.original_len)
    return f"{length:,} tokens" + (f" ({times})" if times else "")


def _times(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "∞"
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×"


def _list(parts: Iterable[str]) -> str:
    items = list(parts)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
