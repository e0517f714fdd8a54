"""Scores -> tables: Markdown for a README, CSV for further work, HTML for the page. One table per task and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from giraffe_jax.evals import lengths, stats
from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report import metrics, paired
from giraffe_jax.report.metrics import PERPLEXITY, Metric
from giraffe_jax.report.scores import Results, Score

# Scores by position are shown but not ranked: being ahead at one position decides nothing.
BY_POSITION = Metric("perplexity by position", "perplexity by position", "perplexity", None)
EFFECTIVE = "effective length"
TOO_FEW = "too few"  # too few questions for an effective length
KEPT = "†"
KEPT_NOTE = f"{KEPT} kept from an earlier version of its method or data: measured before that was changed."
# Share of right answers that defines the effective length, after RULER: Llama-2-7B's score at 4k, 85.6%
# (arXiv:2404.06654).
THRESHOLD = 0.85


@dataclass(frozen=True)
class Table:
    """Variants down, lengths across; `best` has, per length, the best variant if it can be told from the runner-up."""

    task: str
    metric: Metric
    title: str
    variants: tuple[str, ...]
    lengths: tuple[int, ...]
    cells: dict[tuple[str, int], Score]
    original_len: int | None
    best: Mapping[int, str | None] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)  # headings of columns that are not lengths
    effective: Mapping[str, int | None] = field(default_factory=dict)  # effective length by variant, for shares
    unit: str = "example"  # what n counts
    prompts: Mapping[int, str] = field(default_factory=dict)  # notes on columns whose prompts are too short
    kept_cells: frozenset[tuple[str, int]] = frozenset()  # (variant, length) of scores kept from an earlier version

    def heading(self, length: int) -> str:
        """Returns a column's heading: its length, or its label."""
        return self.labels.get(length, f"{length:,}")

    def notes(self, length: int) -> list[str]:
        """Returns the notes beside a column's heading: multiple of the trained length, n, and short prompts."""
        n = self.n(length)
        times = "" if self.labels else multiple(length, self.original_len)
        return [note for note in (times, "" if n is None else f"n={n}", self.prompts.get(length, "")) if note]

    def n(self, length: int) -> int | None:
        """Returns the number of examples behind every score at a length, None if it differs between variants."""
        seen = {self.cells[v, length].estimate.n for v in self.variants if (v, length) in self.cells}
        return seen.pop() if len(seen) == 1 else None

    def few(self) -> str:
        """Returns a sentence on lengths with too few examples to tell variants apart; empty if there are none."""
        most = {n: max(s.estimate.n for (_, length), s in self.cells.items() if length == n) for n in self.lengths}
        few = [n for n in self.lengths if most[n] < stats.FEWEST]
        if self.metric.better is None or not few:
            return ""
        where = "" if len(few) == len(self.lengths) else f"At {', '.join(self.heading(n) for n in few)}: "
        return where + paired.too_few(max(most[n] for n in few), self.unit)

    def text(self, variant: str, length: int) -> str:
        """Returns a score as text, marked if kept from an earlier version; empty if there is none."""
        score = self.cells.get((variant, length))
        if score is None:
            return ""
        return number(score.estimate.value, self.metric.share) + KEPT * ((variant, length) in self.kept_cells)

    def aside(self, variant: str, length: int) -> str:
        """Returns the text beside a score: its interval, and n if it differs between variants."""
        e = self.cells[variant, length].estimate
        parts = [interval(e, self.metric.share), f"n={e.n}" if self.n(length) is None else ""]
        return ", ".join(part for part in parts if part)

    def far(self, variant: str) -> float:
        """Returns the mean score over the lengths beyond the trained one (over all, if there is none); nan if one is
        missing. For perplexity it is the exponential of the mean loss."""
        lengths = [n for n in self.lengths if self.original_len is not None and n > self.original_len] or self.lengths
        cells = [self.cells.get((variant, length)) for length in lengths]
        values = [math.nan if cell is None else cell.estimate.value for cell in cells]
        if self.metric.kind == "perplexity":
            loss = sum(math.log(value) for value in values) / len(values)
            return math.exp(loss) if not loss > 700 else math.inf
        return sum(values) / len(values)

    def furthest(self) -> list[str]:
        """Returns the variants by their scores beyond the trained length, best first; those without a finite score
        (unfinished, or of infinite perplexity) come last."""
        values = {variant: self.far(variant) for variant in self.variants}
        best = paired.ranked({variant: value for variant, value in values.items() if value == value}, self.metric)
        return best + [variant for variant in self.variants if variant not in best]

    def ranked(self, length: int) -> list[str]:
        """Returns the variants at a length, best first."""
        values = {v: self.cells[v, length].estimate.value for v in self.variants if (v, length) in self.cells}
        return paired.ranked(values, self.metric)


def tables(results: Results, scores: Sequence[Score]) -> list[Table]:
    """Returns the tables of all scores, in the order of tasks and metrics."""
    out = []
    for task in results.tasks:
        for metric in metrics.of(results.of(task)):
            cells = {(s.variant, s.length): s for s in scores if (s.task, s.metric) == (task, metric.name)}
            table = Table(
                task=task,
                metric=metric,
                title=task_name(task) if metric == PERPLEXITY else f"{task_name(task)}: {metric.title}",
                variants=tuple(v for v in results.variants if any(v == name for name, _ in cells)),
                lengths=tuple(sorted({length for _, length in cells})),
                cells=cells,
                original_len=results.original_len,
                unit=metrics.unit(results.of(task)),
                prompts=short_prompts(results.of(task)),
                kept_cells=frozenset((v, n) for v, t, n in results.kept_cells if t == task),
            )
            best = {n: paired.leader(results, task, metric, n, table.ranked(n)) for n in table.lengths}
            first = all(other.task != task for other in out)
            out.append(replace(table, best=best, effective=effective(table) if first and metric.share else {}))
    return out


def short_prompts(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Returns a note for each length that has prompts more than 2% too short: their least and mean number of tokens.

    Answers are included, since a length holds prompt and answer; rows of earlier versions do not record their length.
    """
    sizes: dict[int, list[int]] = {}
    for row in rows:
        if "prompt_tokens" in row:
            sizes.setdefault(row["length"], []).append(row["prompt_tokens"] + row.get("answer_tokens", 0))
    notes = {}
    for length, counts in sizes.items():
        if min(counts) < (1 - lengths.SHARE) * length:
            notes[length] = (
                f"prompts with answers of {min(counts):,} tokens or more, mean {sum(counts) / len(counts):,.0f}"
            )
    return notes


def effective(table: Table, threshold: float = THRESHOLD) -> dict[str, int | None]:
    """Returns, per variant, the longest length up to which the interval of its share of right answers stays at or above
    a threshold; None if there is none."""
    bounds: dict[str, dict[int, float]] = {variant: {} for variant in table.variants}
    for (variant, length), score in table.cells.items():
        bounds[variant][length] = score.estimate.low
    return {variant: stats.effective_length(lows, threshold) for variant, lows in bounds.items()}


def effective_scores(tables: Sequence[Table]) -> list[Score]:
    """Returns the effective lengths as scores at the longest length, with its n; nan if there is none."""
    out = []
    for table in tables:
        for variant, length in table.effective.items():
            longest = max(n for v, n in table.cells if v == variant)
            value, n = math.nan if length is None else float(length), table.cells[variant, longest].estimate.n
            out.append(Score(variant, table.task, EFFECTIVE, longest, Estimate(value, math.nan, math.nan, n)))
    return out


def effective_text(table: Table, variant: str) -> str:
    """Returns an effective length as text; TOO_FEW if the shortest length has too few questions for any."""
    length = table.effective[variant]
    if length is not None:
        return f"{length:,}"
    shortest = min(n for v, n in table.cells if v == variant)
    few = table.cells[variant, shortest].estimate.n < stats.fewest_for(THRESHOLD)
    return TOO_FEW if few else f"< {shortest:,}"


def effective_note(table: Table) -> str:
    """Returns the note that defines the effective length and says if questions are too few; empty if none is shown."""
    if not table.effective:
        return ""
    fewest, least = stats.fewest_for(THRESHOLD), min(score.estimate.n for score in table.cells.values())
    few = f" With {least} questions even all right is not enough for that; it takes {fewest}." if least < fewest else ""
    return (
        "Effective length: the longest measured length up to which the 95% interval of the right answers does not "
        f"reach below {THRESHOLD:.0%}.{few}"
    )


def by_position(results: Results, positions: Sequence[tuple[int, int, Score]], task: str) -> Table:
    """Returns the table of perplexity by position in passes of the task's longest length: positions across."""
    length = max(results.lengths(task))
    return Table(
        task=task,
        metric=BY_POSITION,
        title=f"{task_name(task)} by position, in passes of {length:,} tokens",
        variants=tuple(dict.fromkeys(score.variant for _, _, score in positions)),
        lengths=tuple(sorted({high for _, high, _ in positions})),
        cells={(score.variant, high): score for _, high, score in positions},
        original_len=results.original_len,
        labels={high: f"{_thousands(low)}–{_thousands(high)}" for low, high, _ in positions},
        unit=metrics.unit(results.of(task)),
    )


def _thousands(tokens: int) -> str:
    return f"{tokens / 1024:.3g}k" if tokens >= 1024 else str(tokens)


def task_name(task: str) -> str:
    """Returns a task's name in headings."""
    names = {"lines": "Line retrieval", "passkey": "Passkey retrieval", "perplexity": "Perplexity"}
    return names.get(task, task.rpartition(".")[2].replace("_", " ").capitalize())


def number(value: float, share: bool = False) -> str:
    """Returns a score as text: up to three significant digits, shares in whole percent, with a true minus sign."""
    if math.isnan(value):
        return "not finite"
    if math.isinf(value) or value > 1e9:
        return "> 10⁹"
    if share:
        return f"{100 * value:.0f}%"
    size = abs(value)
    text = f"{value:,.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
    return text.replace("-", "−" if text.strip("-0.") else "")


def interval(e: Estimate, share: bool = False) -> str:
    """Returns the 95% interval as text; empty if there is none."""
    if math.isnan(e.low) or math.isnan(e.high):
        return ""
    low, high = number(e.low, share), number(e.high, share)
    return f"{low.removesuffix('%')}{' to ' if e.low < 0 else '–'}{high}"


def multiple(length: int, original_len: int | None) -> str:
    """Returns a length as a multiple of the trained length, `4×`; empty if that is unknown."""
    return f"{length / original_len:.3g}×" if original_len else ""
