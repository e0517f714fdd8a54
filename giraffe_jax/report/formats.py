"""Tables as text: Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence

from giraffe_jax.report.scores import Results, Score
from giraffe_jax.report.tables import EFFECTIVE, KEPT_NOTE, THRESHOLD, Table, effective_note, effective_text


def _column(table: Table, length: int) -> str:
    notes = ", ".join(table.notes(length))
    return table.heading(length) + (f" ({notes})" if notes else "")


def markdown(table: Table) -> str:
    """Returns the table as Markdown: value (95% interval), bold for the best if it can be told from the runner-up."""
    heads = [_column(table, length) for length in table.lengths] + [EFFECTIVE] * bool(table.effective)
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for variant in table.variants:
        cells = []
        for length in table.lengths:
            text = table.text(variant, length)
            text = f"**{text}**" if variant == table.best.get(length) else text
            aside = text and table.aside(variant, length)
            cells.append(f"{text} ({aside})" if aside else text)
        cells += [effective_text(table, variant)] if table.effective else []
        lines.append(f"| {variant.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def all_markdown(results: Results, tables: Sequence[Table]) -> str:
    """Returns the text of tables.md: every table under its heading, after a note on how to read them."""
    title = results.manifest.get("config", {}).get("title") or "Results"
    parts = [
        f"# {title}\n\nColumns are in tokens; each cell is the score and its 95% interval. Bold is what is best and "
        "can be told from the runner-up: the 95% interval of their difference on the same examples excludes zero.\n"
    ]
    for table in tables:
        parts.append(f"## {table.title}\n\n{markdown(table)}" + "".join(f"\n{note}\n" for note in below(table)))
    return "\n".join(parts)


def below(table: Table) -> list[str]:
    """Returns the notes below a table: too few examples, effective lengths, scores kept from earlier versions."""
    notes = [table.few(), effective_note(table), KEPT_NOTE if table.kept_cells else ""]
    return [note for note in notes if note]


def as_csv(results: Results, scores: Sequence[Score]) -> str:
    """Returns the text of results.csv: one line per score; numbers unrounded, missing or non-finite ones empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "trained", "task", "metric", "length", "value", "low", "high", "n", "tokens", "kept"])
    trained = results.trained
    for s in scores:
        e = s.estimate
        numbers = [repr(float(x)) if math.isfinite(x) else "" for x in (e.value, e.low, e.high)]
        tokens = "" if s.tokens is None else s.tokens
        kept = int((s.variant, s.task, s.length) in results.kept_cells)
        writer.writerow([s.variant, int(trained[s.variant]), s.task, s.metric, s.length, *numbers, e.n, tokens, kept])
    return out.getvalue()


def data(value: float) -> str:
    """Returns the HTML attribute that a column is sorted by; empty if there is no number."""
    return f"data-value='{'' if math.isnan(value) else str(float(value)).replace('inf', 'Infinity')}'"


def as_html(table: Table, swatches: Mapping[str, str]) -> str:
    """Returns the table as HTML: a colour mark before each name, intervals below values, leaders marked.

    Args:
      table: to show.
      swatches: HTML of each variant's colour mark, by name.
    """
    head = ["<th scope='col'>variant</th>"]
    for length in table.lengths:
        note = " · ".join(table.notes(length))
        head.append(f"<th scope='col'>{table.heading(length)}<small>{note}</small></th>")
    if table.effective:
        head.append(f"<th scope='col'>{EFFECTIVE}<small>at {THRESHOLD:.0%}</small></th>")
    body = []
    for variant in table.variants:
        row = [f"<th scope='row'>{swatches[variant]}{html.escape(variant)}</th>"]
        for length in table.lengths:
            if (variant, length) not in table.cells:
                row.append("<td data-value=''>–</td>")
                continue
            aside = table.aside(variant, length)
            aside = f"<small>{aside}</small>" if aside else ""
            mark = " class='best'" if variant == table.best.get(length) else ""
            value = table.cells[variant, length].estimate.value
            row.append(f"<td{mark} {data(value)}>{table.text(variant, length)}{aside}</td>")
        if table.effective:
            row.append(f"<td {data(table.effective[variant] or 0)}>{html.escape(effective_text(table, variant))}</td>")
        body.append("<tr>" + "".join(row) + "</tr>")
    return (
        "<div class='scroll'><table><thead><tr>" + "".join(head) + "</tr></thead>\n<tbody>" + "\n".join(body)
        + "</tbody></table></div>"
    )  # fmt: skip
