"""The report: rows -> tables (Markdown, LaTeX, CSV), plots (PNG, SVG) and one self-contained HTML page.

    page = report.write(["runs/quickstart"])        # results.csv, tables.{md,tex}, plots/, report.html

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from giraffe_jax import records
from giraffe_jax.report import between, findings, formats, latex, metrics, page, plots, style, tables
from giraffe_jax.report.draw import save as draw_methods
from giraffe_jax.report.few import before as too_few
from giraffe_jax.report.metrics import PERPLEXITY
from giraffe_jax.report.reading import read
from giraffe_jax.report.scores import Results, Row, estimate, score_all, score_positions

__all__ = ["Results", "brief", "draw_methods", "main_tables", "read", "score_all", "too_few", "write"]


def write(directories: Sequence[str | Path], out: str | Path | None = None, *, png: bool = True) -> Path:
    """Writes the report of one or more work directories and returns the path of its page.

    Args:
      directories: each with a results.jsonl; several are shown side by side, the first compared with the others.
      out: directory for results.csv, tables.md, tables.tex, plots/ and report.html, and with several directories
        compared.csv; the first of `directories` if None.
      png: write each plot as PNG in addition to SVG.

    Raises:
      FileNotFoundError: a directory has no results.jsonl.
      ConfigError: a directory has no results yet, or no valid manifest.
    """
    results = read(directories)
    out = Path(directories[0] if out is None else out)
    scores = score_all(results)
    all_tables, positions = tables.tables(results, scores), []
    for task in results.tasks:
        pieces = score_positions(results, task) if metrics.of(results.of(task)) == [PERPLEXITY] else []
        if len({high for _, high, _ in pieces}) > 1:
            all_tables.append(tables.by_position(results, pieces, task))
            positions += [score for _, _, score in pieces]
    looks = style.looks(results)
    drawn = plots.draw(results, scores, looks, all_tables, png=png)
    records.write_atomically(
        out / "results.csv", formats.as_csv(results, scores + positions + tables.effective_scores(all_tables))
    )
    runs = between.compare(results)
    records.write_atomically(
        out / "tables.md", "\n".join([formats.all_markdown(results, all_tables), *map(between.as_markdown, runs)])
    )
    records.write_atomically(out / "tables.tex", latex.all_latex(all_tables, [between.as_latex(run) for run in runs]))
    if runs:
        records.write_atomically(out / "compared.csv", between.as_csv(runs))
    for plot in drawn:
        records.write_atomically(out / "plots" / f"{plot.name}.svg", plot.svg)
        if plot.png is not None:
            records.write_atomically(out / "plots" / f"{plot.name}.png", plot.png)
    path = out / "report.html"
    records.write_atomically(path, page.render(results, all_tables, drawn, looks, runs))
    return path


def main_tables(results: Results) -> str:
    """Returns the main tables as Markdown: the first metric of every measured task."""
    chosen = findings.main_tables(tables.tables(results, score_all(results)))
    texts = (f"{t.title}, by length in tokens\n\n{formats.markdown(t)}" for t in chosen)
    notes = (f"\n{few}\n" if (few := t.few()) else "" for t in chosen)
    return "\n\n".join(text + few for text, few in zip(texts, notes, strict=True)) or "no results yet"


def brief(rows: Sequence[Row]) -> str:
    """Returns the score of one cell's rows in a few words, for progress lines."""
    if not rows:
        return "no examples"
    metric = metrics.of(rows)[0]
    e = estimate(rows, metric)
    span = tables.interval(e, metric.share)
    name = "ppl" if metric == PERPLEXITY else metric.name
    return f"{name} {tables.number(e.value, metric.share)}" + (f" ({span})" if span else "") + f" n={e.n}"
