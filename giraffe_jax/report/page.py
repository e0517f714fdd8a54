"""The report as one HTML file: no script, no request to anywhere, light and dark, readable on a phone and on paper.

Plots are inlined as SVG whose colours are the page's CSS variables; text in them is text. Every section says how to
read its plot and shows the numbers as a table; the config and the versions are at the end.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

from giraffe_jax import records
from giraffe_jax.report import css, style, tables
from giraffe_jax.report.findings import Finding, findings
from giraffe_jax.report.plots import Plot, describe
from giraffe_jax.report.scores import PERPLEXITY, Results, Score
from giraffe_jax.report.tables import Table, task_name

HOW = {
    "perplexity": "<b>How to read it.</b> Perplexity is exp of the mean loss: how many tokens, equally likely, the "
    "model is in effect choosing between. Lower is better. A method that works stays flat to the right of the trained "
    "length; one that fails climbs.",
    "position": "<b>How to read it.</b> The same loss, split by how many tokens come before the predicted one. More "
    "context should help, so a healthy line falls or stays level; where a line turns upward, the model has stopped "
    "understanding where its tokens are.",
    "retrieval": "<b>How to read it.</b> The share of questions about one earlier fact that are answered exactly. "
    "Perplexity can stay low while this falls: a model may write well and yet not reach what it read long ago.",
    "depth": "<b>How to read it.</b> Each cell is the percentage of right answers at a length (across) and a place of "
    "the fact in the text (down; 0% is the start, 100% right before the question). Dark is right. The line is the "
    "trained length.",
}
SCORED = {
    "teacher": "Teacher-forced: an answer counts when each of its tokens is the most likely one after those before it.",
    "generate": "Generated: greedy decoding; the first number in the output must be the answer.",
    "generate_last": "Generated: greedy decoding; the last number in the output must be the answer.",
}
PROTOCOLS = {
    "strided": "a window of the given length moved by a stride; each window scores only its last stride of tokens",
    "truncated": "the first tokens of every document, up to the given length, in one pass",
    "chunked": "windows of the given length side by side, all their tokens scored",
}


def render(
    results: Results,
    scores: Sequence[Score],
    made: Sequence[Table],
    plots: Sequence[Plot],
    looks: Mapping[str, style.Look],
) -> str:
    """The whole page."""
    config = results.manifest.get("config", {})
    title = config.get("title") or config.get("name") or "Context extension, measured"
    found = findings(results, made)
    sheet = style.css_variables() + css.SHEET
    sections = [_section(results, task, made, plots, looks) for task in results.tasks]
    body = [_header(results, title, config), _findings(found), *sections, _failures(results), _about(results, config)]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<link rel='icon' href='data:,'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{sheet}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n<footer>Bands and ranges are 95% intervals: Wilson's for shares of right answers, a bootstrap "
        "over documents (or windows of one document) for losses. n counts what was resampled or asked. "
        "Made by giraffe-jax.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(results: Results, title: str, config: Mapping) -> str:
    source = results.manifest.get("source", {}).get("name")
    facts = [f"<b>{html.escape(str(source))}</b>"] if source else []
    if results.original_len:
        facts.append(f"trained on <b>{results.original_len:,}</b> tokens")
    lengths = sorted({row["length"] for row in results.rows})
    if lengths:
        facts.append(f"measured at <b>{lengths[0]:,}</b> to <b>{lengths[-1]:,}</b>")
    facts.append(f"<b>{len(results.variants)}</b> variants, <b>{len(results.rows):,}</b> examples")
    if results.seconds:
        facts.append(f"{records.duration(results.seconds)} of measuring")
    question = f"<p class='question'>{html.escape(config['question'])}</p>\n" if config.get("question") else ""
    links = "".join(f"<a href='#{_anchor(task)}'>{html.escape(task_name(task))}</a>" for task in results.tasks)
    return (
        f"<header>\n<p class='kicker'>giraffe-jax · {html.escape(config.get('name') or 'report')}</p>\n"
        f"<h1>{html.escape(title)}</h1>\n{question}<p class='facts'>{' &ensp;·&ensp; '.join(facts)}</p>\n"
        f"<nav>{links}<a href='#about'>Config and versions</a></nav>\n</header>"
    )


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return ""
    cards = "".join(
        f"<div class='figure'><strong>{html.escape(f.figure)}</strong><span>{html.escape(f.label)}</span></div>"
        for f in found
    )
    text = "\n".join(f"<p class='finding'><b>{html.escape(f.task)}.</b> {html.escape(f.sentence)}</p>" for f in found)
    return f"<section>\n<h2>What came out</h2>\n<div class='figures'>{cards}</div>\n{text}\n</section>"


def _section(
    results: Results, task: str, made: Sequence[Table], plots: Sequence[Plot], looks: Mapping[str, style.Look]
) -> str:
    parts = [f"<section id='{_anchor(task)}'>", f"<h2>{html.escape(task_name(task))}</h2>"]
    protocols = {str(row["protocol"]) for row in results.of(task) if row.get("protocol")}
    for protocol in sorted(protocols):
        parts.append(f"<p>Protocol <i>{html.escape(protocol)}</i>: {html.escape(PROTOCOLS.get(protocol, ''))}.</p>")
    explained = set()
    for plot in (plot for plot in plots if plot.task == task):
        if plot.kind not in explained:
            explained.add(plot.kind)
            parts.append(f"<p class='how'>{HOW[plot.kind]}</p>")
        parts.append(_figure(results, plot, looks))
    for table in (table for table in made if table.task == task):
        name = "by length" if table.metric == PERPLEXITY else table.title.removeprefix(f"{task_name(task)}: ")
        parts.append(f"<h3>{html.escape(name[:1].upper() + name[1:])}</h3>")
        if table.metric in SCORED:
            parts.append(f"<p class='how'>{SCORED[table.metric]}</p>")
        parts.append(tables.as_html(table, {v: look.swatch for v, look in looks.items()}))
        note = "Shaded: the best of its column."
        if table.metric == PERPLEXITY:
            tokens = {s.length: s.tokens for s in table.cells.values()}
            scored = ", ".join(f"{count:,} at {length:,}" for length, count in sorted(tokens.items()))
            note += f" Tokens scored for each variant: {scored}; every token weighs the same."
        parts.append(f"<p class='how'><small>{note}</small></p>")
    return "\n".join([*parts, "</section>"])


def _figure(results: Results, plot: Plot, looks: Mapping[str, style.Look]) -> str:
    svg = style.themed(plot.svg, plot.name).replace("<svg", f"<svg role='img' aria-label='{_label(results, plot)}'", 1)
    caption = f"{plot.title}."
    if plot.kind == "depth":
        caption += " Numbers are percentages of right answers."
    else:
        caption += " Shaded: 95% interval."
        if any(look.contrast for look in looks.values()):
            caption += (
                " Full lines and bold names are trained with their positions; dashed ones are the weights as they came."
            )
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f"<figure>\n<div class='scroll' tabindex='0'>\n{svg}</div>\n{caption}\n</figure>"


def _label(results: Results, plot: Plot) -> str:
    return html.escape(f"{plot.title}. {describe(results, plot.task)}. The numbers are in the table below.", quote=True)


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    items = "\n".join(
        f"<li>{html.escape(str(row.get('variant')))}, {html.escape(str(row.get('task')))} at {row.get('length'):,}: "
        f"<code>{html.escape(str(row.get('error')))}</code></li>"
        for row in results.failures
    )
    return (
        "<section>\n<h2>What failed</h2>\n<p>These were tried and are missing above. Running the experiment again "
        f"tries them again.</p>\n<ul class='failures'>\n{items}\n</ul>\n</section>"
    )


def _about(results: Results, config: Mapping) -> str:
    manifest = results.manifest
    entries = dict(manifest.get("versions", {}))
    if "source" in manifest:
        entries = {
            "source": f"{manifest['source']['name']} (fingerprint {manifest['source']['fingerprint']})"
        } | entries
    listing = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in entries.items())
    parts = ["<section id='about'>", "<h2>Config and versions</h2>"]
    if listing:
        parts.append(f"<dl>{listing}</dl>")
    parts.append(
        "<p class='how'>Beside this page: <code>results.jsonl</code> (one row per example), <code>results.csv</code> "
        "(every score), <code>tables.md</code>, and <code>plots/</code> (PNG and SVG).</p>"
    )
    if config:
        text = html.escape(json.dumps(config, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>The whole config</summary><pre>{text}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _anchor(task: str) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in task.lower())
