"""The report as one self-contained HTML file without network requests: light and dark, for phones and for print.

Plots are inlined as SVG that uses the page's CSS variables as colours; their text stays text. Every section explains
how to read its plot and has the numbers in a table; config and versions are at the end. A short script, `css.SORT`,
makes tables sortable; the page works without it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence

from giraffe_jax import records
from giraffe_jax.report import between, css, findings, formats, protocols, question, style, variants
from giraffe_jax.report.metrics import PERPLEXITY
from giraffe_jax.report.paired import FEWEST
from giraffe_jax.report.plots import Plot, describe
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import Table, task_name

HOW = {
    "forest": "<b>How to read it.</b> Every variant read the same windows and answered the same questions, so each is "
    "compared with plain RoPE, and with the one of the best score at that length, one by one. A line is a 95% "
    "interval: one that does not reach zero is a difference that chance does not explain, and its marker is filled. "
    "Intervals are not corrected for multiple comparisons: of twenty equally good variants, one is expected to look "
    "different. Stars mark differences that remain after Holm's correction.",
    "few": "<b>How to read it.</b> Every variant read the same windows and answered the same questions, so each is "
    "compared with plain RoPE, and with the one of the best score at that length, one by one. There are too few for "
    "intervals: how large the differences came out is shown, and nothing more can be said of them.",
    "perplexity": "<b>How to read it.</b> Perplexity is exp of the mean loss: the number of equally likely tokens the "
    "model is in effect choosing between. Lower is better. A method that works stays flat to the right of the trained "
    "length; one that fails climbs.",
    "position": "<b>How to read it.</b> The same loss, split by how many tokens come before the predicted one. More "
    "context should help, so a healthy line falls or stays level; where a line turns upward, the model can no longer "
    "use its positions.",
    "retrieval": "<b>How to read it.</b> The share of questions about one earlier fact that are answered exactly. "
    "Perplexity can stay low while this falls: a model may write well and yet fail to retrieve what it read long ago.",
    "depth": "<b>How to read it.</b> Each cell is the percentage of right answers (the mean share of them, where a "
    "question has several) at a length (across) and a depth of the fact in the text (down; 0% is the start, 100% right "
    "before the question). Dark means right. The line is the trained length.",
}


def render(
    results: Results,
    tables: Sequence[Table],
    plots: Sequence[Plot],
    looks: Mapping[str, style.Look],
    runs: Sequence[between.Comparison] = (),
) -> str:
    """Returns the page as HTML; `runs` are the comparisons with other runs."""
    config = results.manifest.get("config", {})
    title = config.get("title") or config.get("name") or "Context extension, measured"
    sheet = style.css_variables() + css.SHEET
    swatches = {v: look.swatch for v, look in looks.items()}
    body = [
        _header(results, title, config, tables),
        _findings(results, tables),
        _forest(results, tables, plots, looks),
        *(between.as_html(comparison, swatches) for comparison in runs),
        _variants(results, swatches),
        _training(results, tables, plots, looks),
        *(_section(results, task, tables, plots, looks) for task in results.tasks),
        question.as_html(results),
        _failures(results),
        _about(results, config),
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<link rel='icon' href='data:,'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{sheet}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n<footer>Bands and ranges are 95% intervals: Wilson's for shares of right answers, a bootstrap over "
        "documents for losses, its percentiles expanded for small n (Hesterberg 2015). Differences are paired: a "
        "bootstrap over the same units; for shares the adjusted Wald interval (Bonett and Price 2012), reaching to "
        "zero where McNemar's exact test does not tell the two apart. n counts documents, not their windows, or "
        f"questions. Fewer than {FEWEST} have no interval and are never told apart: of two models that differ in "
        "nothing, n pairs all go one way in 1 of 2<sup>n−1</sup> experiments. Made by giraffe-jax.</footer>\n</main>\n"
        f"<script>\n{css.SORT}</script>\n</body>\n</html>\n"
    )


def _header(results: Results, title: str, config: Mapping, tables: Sequence[Table]) -> str:
    manifest = results.manifest
    facts = [part for part in (_model(manifest), _measured(results), _made(manifest)) if part]
    question = f"<p class='question'>{html.escape(config['question'])}</p>\n" if config.get("question") else ""
    verdict = "".join(f"<p class='verdict'>{_said(sentence)}</p>\n" for sentence in findings.verdict(results, tables))
    links = "".join(f"<a href='#{_anchor(task)}'>{html.escape(task_name(task))}</a>" for task in results.tasks)
    return (
        f"<header>\n<p class='kicker'>giraffe-jax · {html.escape(config.get('name') or 'report')}</p>\n"
        f"<h1>{html.escape(title)}</h1>\n{question}{verdict}"
        + "".join(f"<p class='facts'>{fact}</p>\n" for fact in facts)
        + f"<nav>{links}<a href='#about'>Config and versions</a></nav>\n</header>"
    )


def _model(manifest: Mapping) -> str:
    """Returns the line about the model: source, parameters, layers, heads x head_dim, theta, trained length."""
    source, model = manifest.get("source", {}).get("name"), manifest.get("model") or {}
    facts = [f"<b>{html.escape(str(source))}</b>"] if source else []
    if model.get("parameters"):
        facts.append(f"{_count(model['parameters'])} parameters")
    if model.get("num_layers"):
        facts.append(f"{model['num_layers']} layers")
    if model.get("num_heads") and model.get("head_dim"):
        grouped = model.get("num_kv_heads") not in (None, model["num_heads"])
        of = f" ({model['num_kv_heads']} of keys)" if grouped else ""
        facts.append(f"{model['num_heads']} heads × {model['head_dim']}{of}")
    if model.get("theta"):
        facts.append(f"θ {model['theta']:,.7g}")
    if manifest.get("original_len"):
        facts.append(f"trained on <b>{manifest['original_len']:,}</b> tokens")
    return " &ensp;·&ensp; ".join(facts)


def _measured(results: Results) -> str:
    lengths = sorted({row["length"] for row in results.rows})
    facts = [f"measured at <b>{lengths[0]:,}</b> to <b>{lengths[-1]:,}</b> tokens"] if lengths else []
    facts.append(f"<b>{len(results.variants)}</b> variants, <b>{len(results.rows):,}</b> examples")
    if results.seconds:
        facts.append(f"{records.duration(results.seconds)} of measuring")
    return " &ensp;·&ensp; ".join(facts)


def _made(manifest: Mapping) -> str:
    versions = manifest.get("versions", {})
    facts = [str(manifest["date"])] if manifest.get("date") else []
    facts += [f"commit {versions['commit']}"] if versions.get("commit") else []
    facts += [f"jax {versions['jax']}"] if versions.get("jax") else []
    return " &ensp;·&ensp; ".join(html.escape(fact) for fact in facts)


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return f"{parameters:,}"


def _findings(results: Results, tables: Sequence[Table]) -> str:
    cards, sentences = findings.cards(results, tables), findings.more(results, tables)
    if not cards and not sentences:
        return ""
    shown = "".join(
        f"<div class='figure'><strong>{html.escape(card.figure)}</strong><span>{html.escape(card.label)}</span></div>"
        for card in cards
    )
    shown = f"<div class='figures'>{shown}</div>\n" if shown else ""
    text = "\n".join(f"<p class='finding'>{_said(sentence)}</p>" for sentence in sentences)
    return f"<section>\n<h2>What came out</h2>\n{shown}{text}\n</section>"


def _said(sentence: findings.Said) -> str:
    return f"<b>{html.escape(sentence.head)}:</b> {html.escape(sentence.text)}"


def _forest(results: Results, tables: Sequence[Table], plots: Sequence[Plot], looks: Mapping[str, style.Look]) -> str:
    chief = [table.task for table in findings.chief(tables)]
    chief_plots = [plot for plot in plots if plot.kind == "forest" and plot.task in chief]
    if not chief_plots:
        return ""
    figures = "\n".join(_figure(results, tables, plot, looks) for plot in chief_plots)
    explanation = HOW["few" if all(plot.few for plot in chief_plots) else "forest"]
    head = f"<h2>Differences on the same examples</h2>\n<p class='how'>{explanation}</p>"
    return f"<section>\n{head}\n{figures}\n</section>"


def _variants(results: Results, swatches: Mapping[str, str]) -> str:
    table = variants.as_html(results, swatches)
    return f"<section>\n<h2>The variants</h2>\n{table}\n</section>" if table else ""


def _training(results: Results, tables: Sequence[Table], plots: Sequence[Plot], looks: Mapping[str, style.Look]) -> str:
    figures = "\n".join(_figure(results, tables, plot, looks) for plot in plots if plot.kind == "training")
    return f"<section>\n<h2>Training</h2>\n{figures}\n</section>" if figures else ""


def _section(
    results: Results, task: str, tables: Sequence[Table], plots: Sequence[Plot], looks: Mapping[str, style.Look]
) -> str:
    parts = [f"<section id='{_anchor(task)}'>", f"<h2>{html.escape(task_name(task))}</h2>"]
    rows = [table for table in tables if table.task == task]
    at_floor = next((sentence for table in rows if (sentence := findings.floor(table))), "")
    if at_floor:
        return "\n".join([*parts, f"<p>{html.escape(at_floor)}</p>", "</section>"])
    if any(table.metric == PERPLEXITY for table in rows):
        parts.append(f"<p>{html.escape(protocols.describe(results.of(task)))}</p>")
    explained = {"forest"}  # above, where the chief tables' are
    first = [table.task for table in findings.chief(tables)]
    for plot in (plot for plot in plots if plot.task == task and (plot.kind != "forest" or task not in first)):
        if plot.kind not in explained:
            explained.add(plot.kind)
            parts.append(f"<p class='how'>{HOW['few' if plot.few else plot.kind]}</p>")
        parts.append(_figure(results, tables, plot, looks))
    for table in rows:
        name = "by length" if table.metric == PERPLEXITY else table.title.removeprefix(f"{task_name(task)}: ")
        parts.append(f"<h3>{html.escape(name[:1].upper() + name[1:])}</h3>")
        if table.metric.scored:
            parts.append(f"<p class='how'>{table.metric.scored}</p>")
        parts.append(formats.as_html(table, {v: look.swatch for v, look in looks.items()}))
        notes = [_ranking(table) if table.best else "", *formats.below(table)]
        parts += [f"<p class='how'><small>{html.escape(note, quote=False)}</small></p>" for note in notes if note]
    return "\n".join([*parts, "</section>"])


def _ranking(table: Table) -> str:
    """Returns the note that explains a table's marks, or why it has none."""
    if table.metric.better is None:
        return "Not ranked."
    if not any(table.best.values()):
        return "" if table.few() else "Nothing is marked: at no length can the best be told from the runner-up."
    note = "Marked: the best of its column, where its paired difference to the runner-up excludes zero."
    bare = [f"{n:,}" for n in table.lengths if not table.best.get(n) and len(table.ranked(n)) > 1]
    return note + (f" At {', '.join(bare)} the best cannot be told from the runner-up." if bare else "")


def _figure(results: Results, tables: Sequence[Table], plot: Plot, looks: Mapping[str, style.Look]) -> str:
    svg = style.themed(plot.svg, plot.name).replace("<svg", f"<svg role='img' aria-label='{_label(results, plot)}'", 1)
    caption = f"{plot.title}." + (f" {plot.left_out}" if plot.left_out else "")
    if plot.kind == "depth":
        caption += " Numbers are percentages of right answers."
    elif plot.kind == "forest":
        lines = " Lines: 95% intervals of the paired difference, also in brackets. Hollow: not told from zero. "
        caption += (" " if plot.few else lines) + plot.note
    elif plot.kind == "training":
        held_out = any(run.held_out for runs in results.training.values() for run in runs)
        caption += " Thin: of batches; with markers: of held-out text." if held_out else " Of batches."
    else:
        scores = [score for table in tables if table.task == plot.task for score in table.cells.values()]
        shaded = any(math.isfinite(score.estimate.low) for score in scores)
        caption += " Shaded: 95% interval." if shaded else " There are too few examples for intervals."
        if any(look.contrast for look in looks.values()):
            caption += (
                " Full lines and bold names are trained with their positions; dashed ones are the weights as they came."
            )
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f"<figure>\n<div class='scroll' tabindex='0'>\n{svg}</div>\n{caption}\n</figure>"


def _label(results: Results, plot: Plot) -> str:
    below = "The numbers are in the table below." if plot.task else ""
    return html.escape(f"{plot.title}. {describe(results, plot.task)}. {below}", quote=True)


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
    entries = {key: manifest[key] for key in ("command", "date") if manifest.get(key)} | entries
    if "source" in manifest:
        entries = {
            "source": f"{manifest['source']['name']} (fingerprint {manifest['source']['fingerprint']})"
        } | entries
    model = manifest.get("model") or {}
    if "precision" in model:
        entries["computed in"] = f"{model.get('dtype')}, matmuls at {model['precision']} precision"
    listing = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in entries.items())
    parts = ["<section id='about'>", "<h2>Config and versions</h2>"]
    if listing:
        parts.append(f"<dl>{listing}</dl>")
    parts.append(
        "<p class='how'>Beside this page: <code>results.jsonl</code> (one row per example), <code>results.csv</code> "
        "(every score), <code>tables.md</code>, <code>tables.tex</code>, <code>plots/</code> (PNG and SVG), and of "
        "several runs <code>compared.csv</code>.</p>"
    )
    if config:
        text = html.escape(json.dumps(config, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>The whole config</summary><pre>{text}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _anchor(task: str) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in task.lower())
