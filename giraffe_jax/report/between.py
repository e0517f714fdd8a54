"""Runs side by side: what changed between variants of the same name, on the examples that both runs have measured."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass

from giraffe_jax.report import findings, metrics, paired
from giraffe_jax.report.paired import Difference
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import data, number, task_name


@dataclass(frozen=True)
class Comparison:
    """The first run against another: (name of both variants, the first one's less the other's) of every task."""

    first: str
    other: str
    found: tuple[tuple[str, Difference], ...]


def compare(results: Results) -> list[Comparison]:
    """The first run against each other one that shares variants and examples with it."""
    out = []
    for first, other in ((a, b) for a in list(results.runs)[:1] for b in list(results.runs)[1:]):
        mine, theirs = results.runs[first], results.runs[other]
        pairs = [
            (name, longest(results, task, mine[name], theirs[name]))
            for task in results.tasks
            for name in mine
            if name in theirs
        ]
        found = tuple((name, d) for name, d in pairs if d is not None)
        out += [Comparison(first, other, found)] if found else []
    return out


def longest(results: Results, task: str, variant: str, base: str) -> Difference | None:
    """The difference in a task's first metric at the longest length with examples in common, None where none is."""
    metric = metrics.of(results.of(task))[0]
    for length in reversed(results.lengths(task)):
        d = paired.difference(results, task, metric, length, variant, base)
        if d is not None and math.isfinite(d.estimate.value):
            return d
    return None


def as_html(
    comparison: Comparison, scores: Mapping[tuple[str, str, str, int], float], swatches: Mapping[str, str]
) -> str:
    """The comparison as a table; `scores` by variant, task, metric and length."""
    stay = paired.holm(d for _, d in comparison.found)
    heads = ["variant", "task", "length", comparison.first, comparison.other, "difference", "examples", "told apart"]
    head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in heads)
    body = []
    for name, d in comparison.found:
        e, share = d.estimate, d.metric.share
        cells = [f"<td>{html.escape(task_name(d.task))}</td>", f"<td {data(d.length)}>{d.length:,}</td>"]
        for variant in (d.variant, d.base):
            value = scores[variant, d.task, d.metric.name, d.length]
            cells.append(f"<td {data(value)}>{number(value, share)}</td>")
        bounds = f"{findings.shown(e.low, share)} to {findings.shown(e.high, share)}" if math.isfinite(e.low) else ""
        mark = " class='best'" if d.apart else ""
        amount = f"{findings.shown(e.value, share)}<small>{bounds or 'no interval'} {findings.unit(d)}</small>"
        cells.append(f"<td{mark} {data(e.value)}>{amount}</td><td {data(e.n)}>{e.n}</td>")
        verdict = ("yes *" if stay[d.pair] else "yes") if d.apart else "no"
        body.append(
            f"<tr><th scope='row'>{swatches[d.variant]}{html.escape(name)}</th>{''.join(cells)}<td>{verdict}</td></tr>"
        )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody></table>"
    return f"<div class='scroll' tabindex='0'>{table}</div>"
