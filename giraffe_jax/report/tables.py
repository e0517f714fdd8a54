"""Scores -> tables: Markdown for a README, CSV for further work, HTML for the page. One table per task and metric."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report.scores import PERPLEXITY, Results, Score, is_share

POSITIONS = "by position"
METRICS = {
    PERPLEXITY: "perplexity",
    "teacher": "answers right, teacher-forced",
    "generate": "answers right, generated",
    "generate_last": "answers right, generated, last number",
    "answer_nll": "loss on the answer, nats a token",
}


@dataclass(frozen=True)
class Table:
    """Variants down, lengths across. `better` is "low" or "high"; `n` per length where all variants share it."""

    task: str
    metric: str
    title: str
    share: bool
    better: str
    variants: tuple[str, ...]
    lengths: tuple[int, ...]
    cells: dict[tuple[str, int], Score]
    original_len: int | None
    labels: Mapping[int, str] = field(default_factory=dict)  # of columns that are not lengths

    def heading(self, length: int) -> str:
        """What a column is: a length, or its label."""
        return self.labels.get(length, f"{length:,}")

    def notes(self, length: int) -> list[str]:
        """What is said beside a column's heading: its multiple of the trained length, and n."""
        n = self.n(length)
        times = "" if self.labels else multiple(length, self.original_len)
        return [note for note in (times, "" if n is None else f"n={n}") if note]

    def n(self, length: int) -> int | None:
        """The number of examples behind every score at a length, None where they differ."""
        seen = {self.cells[v, length].estimate.n for v in self.variants if (v, length) in self.cells}
        return seen.pop() if len(seen) == 1 else None

    def best(self, length: int) -> set[str]:
        """The variants whose shown value is the best at a length."""
        values = {v: self.cells[v, length].estimate.value for v in self.variants if (v, length) in self.cells}
        finite = {v: x for v, x in values.items() if math.isfinite(x)}
        if len(finite) < 2:
            return set()
        top = (min if self.better == "low" else max)(finite.values())
        return {v for v, x in finite.items() if number(x, self.share) == number(top, self.share)}


def tables(results: Results, scores: Sequence[Score]) -> list[Table]:
    """The tables of all scores, in the order of tasks and metrics."""
    out = []
    for task, metric in dict.fromkeys((s.task, s.metric) for s in scores):
        own = {(s.variant, s.length): s for s in scores if (s.task, s.metric) == (task, metric)}
        share = metric != PERPLEXITY and is_share(results.of(task), metric)
        out.append(
            Table(
                task=task,
                metric=metric,
                title=f"{task_name(task)}: {metric_name(metric)}" if metric != PERPLEXITY else task_name(task),
                share=share,
                better="high" if share else "low",
                variants=tuple(v for v in results.variants if any(v == name for name, _ in own)),
                lengths=tuple(sorted({length for _, length in own})),
                cells=own,
                original_len=results.original_len,
            )
        )
    return out


def by_position(results: Results, positions: Sequence[tuple[int, int, Score]], task: str) -> Table:
    """The table of perplexity by position in passes of the task's longest length: variants down, positions across."""
    length = max(results.lengths(task))
    return Table(
        task=task,
        metric=POSITIONS,
        title=f"{task_name(task)} by position, in passes of {length:,} tokens",
        share=False,
        better="low",
        variants=tuple(dict.fromkeys(score.variant for _, _, score in positions)),
        lengths=tuple(sorted({high for _, high, _ in positions})),
        cells={(score.variant, high): score for _, high, score in positions},
        original_len=results.original_len,
        labels={high: f"{_thousands(low)}–{_thousands(high)}" for low, high, _ in positions},
    )


def _thousands(tokens: int) -> str:
    return f"{tokens / 1024:.3g}k" if tokens >= 1024 else str(tokens)


def task_name(task: str) -> str:
    """How a task is called in headings."""
    names = {"lines": "Line retrieval", "passkey": "Passkey retrieval", "perplexity": "Perplexity"}
    return names.get(task, task.replace("_", " ").capitalize())


def metric_name(metric: str) -> str:
    """How a metric is called in headings."""
    return METRICS.get(metric, metric.replace("_", " "))


def number(value: float, share: bool = False) -> str:
    """A score as shown: three significant digits, shares in percent."""
    if math.isnan(value):
        return "not finite"
    if math.isinf(value) or value > 1e9:
        return "> 10⁹"
    if share:
        return f"{100 * value:.0f}%"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def interval(e: Estimate, share: bool = False) -> str:
    """The 95% interval as shown, empty where there is none."""
    if math.isnan(e.low) or math.isnan(e.high):
        return ""
    low, high = number(e.low, share), number(e.high, share)
    return f"{low.removesuffix('%')}–{high}"


def multiple(length: int, original_len: int | None) -> str:
    """A length in trained lengths, `4×`; empty where the trained length is not known."""
    return f"{length / original_len:.3g}×" if original_len else ""


def _column(table: Table, length: int) -> str:
    notes = ", ".join(table.notes(length))
    return table.heading(length) + (f" ({notes})" if notes else "")


def markdown(table: Table) -> str:
    """The table as Markdown: value (95% interval), the best of each column in bold."""
    lines = ["| | " + " | ".join(_column(table, length) for length in table.lengths) + " |"]
    lines.append("|---|" + "---:|" * len(table.lengths))
    for variant in table.variants:
        cells = []
        for length in table.lengths:
            score = table.cells.get((variant, length))
            if score is None:
                cells.append("")
                continue
            text = number(score.estimate.value, table.share)
            text = f"**{text}**" if variant in table.best(length) else text
            span = interval(score.estimate, table.share)
            extra = [span] if span else []
            extra += [f"n={score.estimate.n}"] if table.n(length) is None else []
            cells.append(f"{text} ({', '.join(extra)})" if extra else text)
        lines.append(f"| {variant.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def all_markdown(results: Results, made: Sequence[Table]) -> str:
    """tables.md: every table under its heading, with how to read it."""
    title = results.manifest.get("config", {}).get("title") or "Results"
    parts = [f"# {title}\n\nColumns are in tokens; each cell is the score and its 95% interval.\n"]
    parts += [f"## {table.title}\n\n{markdown(table)}" for table in made]
    return "\n".join(parts)


def as_csv(results: Results, scores: Sequence[Score]) -> str:
    """results.csv: one line per score, unrounded; empty where a number is not finite or does not exist."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "trained", "task", "metric", "length", "value", "low", "high", "n", "tokens"])
    trained = results.trained
    for s in scores:
        e = s.estimate
        numbers = [repr(float(x)) if math.isfinite(x) else "" for x in (e.value, e.low, e.high)]
        tokens = "" if s.tokens is None else s.tokens
        writer.writerow([s.variant, int(trained[s.variant]), s.task, s.metric, s.length, *numbers, e.n, tokens])
    return out.getvalue()


def as_html(table: Table, swatches: Mapping[str, str]) -> str:
    """The table as HTML: a swatch (markup) before each name, intervals below values, the best of a column marked."""
    head = ["<th scope='col'></th>"]
    for length in table.lengths:
        note = " · ".join(table.notes(length))
        head.append(f"<th scope='col'>{table.heading(length)}<small>{note}</small></th>")
    body = []
    for variant in table.variants:
        row = [f"<th scope='row'>{swatches[variant]}{html.escape(variant)}</th>"]
        for length in table.lengths:
            score = table.cells.get((variant, length))
            if score is None:
                row.append("<td>–</td>")
                continue
            span = interval(score.estimate, table.share) or "no interval"
            span += f", n={score.estimate.n}" if table.n(length) is None else ""
            mark = " class='best'" if variant in table.best(length) else ""
            row.append(f"<td{mark}>{number(score.estimate.value, table.share)}<small>{span}</small></td>")
        body.append("<tr>" + "".join(row) + "</tr>")
    return (
        "<div class='scroll'><table><thead><tr>" + "".join(head) + "</tr></thead>\n<tbody>" + "\n".join(body)
        + "</tbody></table></div>"
    )  # fmt: skip
