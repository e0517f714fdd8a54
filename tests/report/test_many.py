"""Of many variants a plot shows those that matter, and says so; tables have all."""

import math
import re

import fabricate
import pytest

from giraffe_jax import records, report
from giraffe_jax.report import plots

NAMES = [f"method {i}" for i in range(30)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Thirty variants and plain: the higher the number the better beyond 256 tokens, and the worse at 256."""
    figures = {"plain": ((1, 0, 0, 0), (1, 0, 0, 0), (10, 500, 500, 500))}
    for i, name in enumerate(NAMES):
        share = i / 30
        figures[name] = ((1 - share, share, share, share), (1 - share, share, share, share), (20 + i, *[400 - i] * 3))
    folder = tmp_path_factory.mktemp("many")
    rows = fabricate.rows(figures=figures)
    (folder / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows))
    (folder / "experiment.json").write_text('{"original_len": 256}')
    return report.write([folder], png=False)


@pytest.mark.parametrize("plot", ["lines-teacher-length", "perplexity-length", "lines-forest", "lines-teacher-depth"])
def test_a_plot_names_plain_and_the_best_beyond_the_trained_length(page, plot):
    svg = (page.parent / "plots" / f"{plot}.svg").read_text()
    named = set(re.findall(r"method \d+", svg))
    best = set(NAMES[-(plots.MOST - 1) :])
    assert named == best and "plain" in svg


def test_the_page_says_what_its_plots_leave_out_and_its_tables_have_all(page):
    text = page.read_text()
    assert text.count("Of 31 variants: plain and the 23 that are best beyond the trained length; tables have all.") >= 4
    for table in re.findall(r"<tbody>.*?</tbody>", text, re.S):
        assert {"plain", *NAMES} <= set(re.findall(r"plain|method \d+", table))
    scores = report.read([page.parent])
    assert len(scores.only(["plain", "method 3"]).variants) == 2


def test_scores_beyond_the_trained_length(page):
    results = report.read([page.parent])
    made = report.tables.tables(results, report.score_all(results))
    (losses,) = (table for table in made if table.metric.kind == "perplexity")
    assert losses.far("method 3") == pytest.approx(397) and losses.furthest()[0] == "method 29"
    (lines,) = (table for table in made if (table.task, table.metric.name) == ("lines", "teacher"))
    assert lines.far("method 15") == pytest.approx(0.5) and lines.furthest()[0] == "method 29"
    del lines.cells["method 29", 1024]
    assert math.isnan(lines.far("method 29")) and lines.furthest()[-1] == "method 29"
