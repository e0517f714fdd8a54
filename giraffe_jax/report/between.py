"""Compares runs: differences between variants of the same name, on the examples that both runs have measured."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from giraffe_jax.report import findings, latex, metrics, paired
from giraffe_jax.report.formats import data
from giraffe_jax.report.metrics import Metric
from giraffe_jax.report.paired import Difference
from giraffe_jax.report.reading import changed, same_rows
from giraffe_jax.report.scores import Results, estimate
from giraffe_jax.report.tables import KEPT, KEPT_NOTE, number, task_name

HEADS = ("variant", "task", "length", "difference", "n", "told apart")  # the two runs' columns come before "difference"


@dataclass(frozen=True)
class Line:
    """A variant at a length of a task: its scores in the first run and in the other, and the difference, first minus
    other; None if all rows are equal."""

    name: str
    task: str
    metric: Metric
    length: int
    values: tuple[float, float]
    kept: tuple[bool, bool]
    difference: Difference | None

    def value(self, run: int) -> str:
        """Returns the score of run 0 (the first) or 1 (the other) as text."""
        return number(self.values[run], self.metric.share) + KEPT * self.kept[run]


@dataclass(frozen=True)
class Comparison:
    """The first run compared with another: every variant of the same name, at every length measured in both."""

    first: str
    other: str
    lines: tuple[Line, ...]
    same: tuple[str, ...] = ()  # variants with equal results in both, which reports show once
    code: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # variant -> files of its methods that differ
    config: tuple[str, ...] = ()  # variants whose parameters or training differ
    unsaid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # variant -> runs that did not record its code

    @property
    def differences(self) -> list[Difference]:
        """The differences; lines whose rows are equal in both runs have none."""
        return [line.difference for line in self.lines if line.difference is not None]

    def told(self, line: Line, stay: Mapping[paired.Pair, bool]) -> str:
        """Returns in words whether the two runs are told apart; `stay` is from `paired.holm`, and adds a star."""
        d = line.difference
        if d is None or d.few:
            return "same" if d is None else "too few"
        return ("yes *" if stay[d.pair] else "yes") if d.apart else "no"

    def notes(self) -> list[str]:
        """Returns notes on the comparison, each a sentence or two."""
        notes = [paired.chance(self.differences)] if self.differences else []
        if self.code:
            listed = "; ".join(f"{name} ({', '.join(files)})" for name, files in self.code.items())
            notes.append(f"The code behind one name differs: {listed}.")
        for name, runs in self.unsaid.items():
            notes.append(f"The code behind {name} may differ: {' and '.join(runs)} did not record it.")
        if self.config:
            notes.append(f"Parameters or training behind one name differ: {', '.join(self.config)}.")
        if self.same:
            notes.append(f"The same in both, to the last bit, and shown once: {', '.join(self.same)}.")
        if any(line.difference is None for line in self.lines):
            notes.append('"same": all rows are the same in both, so nothing is compared there.')
        return notes + [KEPT_NOTE] * any(any(line.kept) for line in self.lines)


def compare(results: Results) -> list[Comparison]:
    """Compares the first run with each other run that shares variants and examples with it."""
    labels = list(results.runs)
    comparisons = (_compared(results, labels[0], other) for other in labels[1:])
    return [comparison for comparison in comparisons if comparison.lines or comparison.same]


def _compared(results: Results, first: str, other: str) -> Comparison:
    ours, theirs = results.runs[first], results.runs[other]
    shared = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    differing = {name: both for name, both in shared.items() if both[0] != both[1]}
    sources, entries = results.sources, {v["name"]: v for v in results.manifest.get("config", {}).get("variants", ())}
    code, unsaid, config = {}, {}, []
    for name, both in differing.items():
        if files := changed(*(sources.get(v) for v in both)):
            code[name] = tuple(files)
        settings = [{k: x for k, x in entries.get(v, {}).items() if k != "name" and x is not None} for v in both]
        silent = tuple(run for run, v in zip((first, other), both, strict=True) if v not in sources)
        if silent and any(map(_own, settings)):
            unsaid[name] = silent
        if settings[0] != settings[1] and all(settings):
            config.append(name)
    lines = tuple(
        line
        for task in results.tasks
        for name, both in differing.items()
        for length in results.lengths(task)
        if (line := _line(results, name, both, task, length)) is not None
    )
    same = tuple(name for name in shared if name not in differing)
    return Comparison(first, other, lines, same, code, tuple(config), unsaid)


def _own(value: Any) -> bool:
    """Returns whether a variant's positions contain a user's method, named by its dotted path."""
    if isinstance(value, Mapping):
        return "." in str(value.get("name", "")) or any(map(_own, value.values()))
    return isinstance(value, list | tuple) and any(map(_own, value))


def _line(results: Results, name: str, both: tuple[str, str], task: str, length: int) -> Line | None:
    """Returns the line, or None if the two runs share no example, or a loss is not finite."""
    metric = metrics.of(results.of(task))[0]
    rows = [results.of(task, variant, length) for variant in both]
    if not all(rows):
        return None
    d = None
    if not same_rows(*rows):
        d = paired.difference(results, task, metric, length, *both)
        if d is None or not math.isfinite(d.estimate.value):
            return None
    first_value, other_value = (estimate(variant_rows, metric).value for variant_rows in rows)
    kept = tuple((variant, task, length) in results.kept_cells for variant in both)
    return Line(name, task, metric, length, (first_value, other_value), (kept[0], kept[1]), d)


def bounds(d: Difference) -> str:
    """Returns the interval of a difference in brackets; empty if it has none."""
    share = d.metric.share
    return "" if d.few else f"[{findings.shown(d.estimate.low, share)} to {findings.shown(d.estimate.high, share)}]"


def as_html(comparison: Comparison, swatches: Mapping[str, str]) -> str:
    """Returns the comparison as an HTML section with its table.

    Args:
      comparison: of two runs.
      swatches: HTML of each variant's colour mark, by name.
    """
    significant = paired.holm(comparison.differences)
    head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in _heads(comparison))
    body = []
    for line in comparison.lines:
        d = line.difference
        cells = [f"<td>{html.escape(task_name(line.task))}</td>", f"<td {data(line.length)}>{line.length:,}</td>"]
        values = [f"<td {data(line.values[run])}>{line.value(run)}</td>" for run in (0, 1)]
        if d is None:
            cells += [values[0], "<td data-value=''></td>", "<td data-value='0.0'></td>", "<td data-value=''></td>"]
        else:
            mark, e = " class='best'" if d.apart else "", d.estimate
            aside = " ".join(part for part in (bounds(d).strip("[]"), findings.unit(d)) if part)
            cells += [*values, f"<td{mark} {data(e.value)}>{findings.shown(e.value, d.metric.share)}"]
            cells[-1] += f"<small>{html.escape(aside)}</small></td>"
            cells.append(f"<td {data(e.n)}>{html.escape(d.pairs)}</td>")
        swatch = "" if d is None else swatches[d.variant]
        files = html.escape(", ".join(_files(comparison, line)))
        code = f"<small>other code: {files}</small>" if files else ""
        name = f"<th scope='row'>{swatch}{html.escape(line.name)}{code}</th>"
        body.append(f"<tr>{name}{''.join(cells)}<td>{comparison.told(line, significant)}</td></tr>")
    table = f"<table class='between'><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody></table>"
    notes = " ".join(html.escape(note, quote=False) for note in comparison.notes())
    explanation = f"<p class='how'>{HOW} {notes}</p>" if comparison.lines else f"<p class='how'>{notes}</p>"
    table = f"\n<div class='scroll' tabindex='0'>{table}</div>" if comparison.lines else ""
    title = html.escape(f"{comparison.first} against {comparison.other}")
    return f"<section>\n<h2>{title}</h2>\n{explanation}{table}\n</section>"


HOW = (
    "<b>How to read it.</b> Variants of the same name in both runs, on the same windows and questions, at every length "
    "that both have: the first run less the other. Marked: told apart."
)


def as_markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown, for tables.md."""
    heads = [text.replace("|", r"\|") for text in _heads(comparison)]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|---:|---|"]
    for cells, apart in _cells(comparison):
        cells = [cell.replace("|", r"\|") for cell in cells]
        cells[5] = f"**{cells[5]}**" if apart else cells[5]
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n" if comparison.lines else ""
    title = f"## {comparison.first} against {comparison.other}\n"
    return "\n".join(part for part in (title, table, *(f"{note}\n" for note in comparison.notes())) if part)


def as_latex(comparison: Comparison) -> str:
    """Returns the comparison as LaTeX, for tables.tex."""
    lines = [" & ".join(map(latex.escape, _heads(comparison))) + r" \\", r"\midrule"]
    for cells, apart in _cells(comparison):
        cells = [latex.escape(cell) for cell in cells]
        cells[5] = rf"\textbf{{{cells[5]}}}" if apart else cells[5]
        lines.append(" & ".join(cells) + r" \\")
    caption = " ".join([f"{comparison.first} against {comparison.other}.", *comparison.notes()])
    return latex.environment(caption, "llrrrrrl", lines)


def as_csv(comparisons: Iterable[Comparison]) -> str:
    """Returns the text of compared.csv: a line per variant, task and length; numbers unrounded, missing ones empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = "first other variant task metric length first_value other_value difference low high n unit told_apart holm"
    writer.writerow([*heads.split(), "same", "other_code"])
    for comparison in comparisons:
        significant = paired.holm(comparison.differences)
        for line in comparison.lines:
            d = line.difference
            numbers = [*line.values] + ([d.estimate.value, d.estimate.low, d.estimate.high] if d else [math.nan] * 3)
            flags = ["" if d.few else int(d.apart), "" if d.few else int(significant[d.pair]), 0] if d else ["", "", 1]
            row = [comparison.first, comparison.other, line.name, line.task, line.metric.name, line.length]
            row += [repr(float(x)) if math.isfinite(x) else "" for x in numbers]
            row += [d.estimate.n, d.unit] if d else ["", ""]
            writer.writerow([*row, *flags, ";".join(_files(comparison, line))])
    return out.getvalue()


def _heads(comparison: Comparison) -> list[str]:
    return [*HEADS[:3], comparison.first, comparison.other, *HEADS[3:]]


def _files(comparison: Comparison, line: Line) -> tuple[str, ...]:
    return () if line.difference is None else comparison.code.get(line.name, ())


def _cells(comparison: Comparison) -> list[tuple[list[str], bool]]:
    """Returns the cell texts of each line, and whether its difference is marked."""
    significant, out = paired.holm(comparison.differences), []
    for line in comparison.lines:
        d = line.difference
        cells = [line.name, task_name(line.task), f"{line.length:,}", line.value(0)]
        if d is None:
            cells += ["", "", ""]
        else:
            amount = f"{findings.shown(d.estimate.value, d.metric.share)} {findings.unit(d)}"
            cells += [line.value(1), " ".join(part for part in (amount, bounds(d)) if part), d.pairs]
        out.append(([*cells, comparison.told(line, significant)], d is not None and d.apart))
    return out
