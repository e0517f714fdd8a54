"""The report says what the rows say: its numbers are computed again here with numpy, from rows made up for it."""

import csv
import html.parser
import json
import math
import re
import shutil
import subprocess

import fabricate
import numpy as np
import pytest

from giraffe_jax import records, report
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import stats
from giraffe_jax.report import formats, metrics, paired, plots, scores, style, tables


@pytest.fixture(scope="module")
def rows(made):
    return list(records.read_rows(made / "results.jsonl"))


def scores_of(made):
    with open(made / "results.csv") as file:
        return {(r["variant"], r["task"], r["metric"], int(r["length"])): r for r in csv.DictReader(file)}


def test_perplexity_is_exp_of_the_token_weighted_mean(made, rows):
    found = scores_of(made)
    for variant in ("plain", "yarn 4 + training"):
        for length in fabricate.LENGTHS:
            own = [r for r in rows if (r["variant"], r["task"], r["length"]) == (variant, "perplexity", length)]
            nll, tokens = np.array([(r["metrics"]["nll"], r["metrics"]["tokens"]) for r in own]).T
            score = found[variant, "perplexity", "perplexity", length]
            np.testing.assert_allclose(float(score["value"]), np.exp(np.average(nll, weights=tokens)), rtol=1e-12)
            # All documents have the same number of tokens, so the interval is that of a plain mean of documents, by
            # Student's t; 2,000 draws know a percentile to some 5%, and fewer lie where these are.
            documents = [np.mean([r["metrics"]["nll"] for r in own if r["document"] == f"book-{k}"]) for k in range(8)]
            spread = 2.3646 * np.std(documents, ddof=1) / math.sqrt(8)
            assert math.log(float(score["high"]) / float(score["low"])) == pytest.approx(2 * spread, rel=0.15)
            assert int(score["n"]) == 8 and int(score["tokens"]) == tokens.sum()


def test_shares_and_their_intervals(made, rows):
    found = scores_of(made)
    for variant in ("plain", "ntk 4", "linear 4 + training"):
        own = [r for r in rows if (r["variant"], r["task"], r["length"]) == (variant, "lines", 1024)]
        right = np.array([r["metrics"]["teacher"] for r in own])
        score = found[variant, "lines", "teacher", 1024]
        n, p, z = len(right), right.mean(), 1.959964
        assert float(score["value"]) == pytest.approx(p)
        # Wilson's interval is where |p - q| = z sqrt(q (1 - q) / n): its bounds solve that equation.
        for bound in (float(score["low"]), float(score["high"])):
            assert abs(p - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)
        assert int(score["n"]) == 40 and score["tokens"] == ""
        mean = np.mean([r["metrics"]["answer_nll"] for r in own])
        assert float(found[variant, "lines", "answer_nll", 1024]["value"]) == pytest.approx(mean)


def test_known_values():
    def row(variant, length, metrics, **rest):
        return {"variant": variant, "task": "perplexity", "length": length, "metrics": metrics} | rest

    made_up = [
        row("plain", 4, {"nll": math.log(8.0), "tokens": 10}),
        row("plain", 4, {"nll": math.log(2.0), "tokens": 10}),
        row("plain", 8, {"nll": None, "tokens": 10}),
        row("b", 4, {"nll": math.log(3.0), "tokens": 1}),
    ]
    results = scores.collect(made_up, {"original_len": 4})
    found = scores.score_all(results)
    values = {(s.variant, s.length): s.estimate.value for s in found}
    assert (
        values["plain", 4] == pytest.approx(4.0)
        and math.isnan(values["plain", 8])
        and values["b", 4] == pytest.approx(3)
    )
    (table,) = tables.tables(results, found)
    assert formats.markdown(table).splitlines() == [
        "| | 4 (1×) | 8 (2×, n=1) |",
        "|---|---:|---:|",
        "| plain | 4.00 (n=2) | not finite |",
        "| b | 3.00 (n=1) |  |",
    ]


def test_loss_by_position_pools_documents():
    first = {"document": "a", "bins": [[1, 4, 6.0, 3], [4, 16, 12.0, 12]]}
    second = {"document": "b", "bins": [[1, 4, 12.0, 3], [4, 16, None, 12]]}
    (low, high, early), (_, _, late) = scores.loss_curve([first, second])
    assert (low, high) == (1, 4) and early.value == 3.0 and early.n == 2 and math.isnan(early.low)
    assert math.isnan(late.value)
    ((low, high, whole),) = scores.loss_curve([first], pieces=1)
    assert (low, high) == (1, 16) and whole.value == pytest.approx(18 / 15)
    assert scores.loss_curve([], pieces=8) == []


def test_a_variant_that_has_not_come_to_the_longest_length_is_reported_as_far_as_it_is(tmp_path):
    found = [r for r in fabricate.rows() if not (r["variant"] != "plain" and r["length"] == 2048)]
    (tmp_path / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in found))
    assert report.write([tmp_path], png=False).exists()


def test_perplexity_by_position(made, rows):
    found = scores_of(made)
    own = [r for r in rows if (r["variant"], r["task"], r["length"]) == ("plain", "perplexity", 2048)]
    names = [metric for variant, _, metric, _ in found if variant == "plain" and metric.startswith("perplexity ")]
    assert len(names) == 8 and names[0].startswith("perplexity 1-") and names[-1].endswith("-2048")
    low, high = map(int, names[-1].split()[1].split("-"))
    inside = np.array([b for r in own for b in r["bins"] if low <= b[0] and b[1] <= high])
    score = found["plain", "perplexity", names[-1], 2048]
    assert float(score["value"]) == pytest.approx(np.exp(inside[:, 2].sum() / inside[:, 3].sum()))
    assert int(score["tokens"]) == inside[:, 3].sum() == fabricate.WINDOWS * (high - low)
    assert "Perplexity by position, in passes of 2,048 tokens" in (made / "tables.md").read_text()


def test_fractions_are_compared_by_their_means_and_shares_by_mcnemars_test():
    def results(first, second):
        rows = [
            {"variant": v, "task": "ruler", "length": 8, "example": i, "metrics": {"match_all": x}}
            for v, values in (("a", first), ("b", second))
            for i, x in enumerate(values)
        ]
        return scores.collect(rows)

    def compared(found):
        (metric,) = metrics.of(found.rows)
        d = paired.difference(found, "ruler", metric, 8, "a", "b")
        assert d is not None
        return metric, d

    metric, d = compared(results([0.75] * 6, [0.5, 0.5, 0.5, 0.25, 0.5, 0.5]))
    assert (metric.kind, d.p) == ("fraction", None)
    assert d.estimate.value == pytest.approx(1.75 / 6)  # of the share that gained it would be 1
    metric, d = compared(results([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]))
    assert metric.kind == "share" and d.estimate.value == 0.5 and d.p == pytest.approx(2 * 0.5**3)


def test_depths_are_gathered_into_fifths():
    made_up = [{"length": 8, "depth": i / 99, "metrics": {"teacher": int(i < 20)}} for i in range(100)]
    depths, lengths, cells = scores.depth_grid(made_up, "teacher")
    assert lengths == [8] and depths == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [cells[d, 8].value for d in depths] == [1, 0, 0, 0, 0] and cells[depths[0], 8].n == 20
    depths, _, _ = scores.depth_grid([r | {"depth": i % 3 / 2} for i, r in enumerate(made_up)], "teacher")
    assert depths == [0.0, 0.5, 1.0]


def test_unfinished_and_repeated_cells():
    def row(example, value):
        return {"key": "k", "variant": "a", "task": "t", "length": 1, "example": example, "metrics": {"teacher": value}}

    done = {"kind": "done", "key": "k", "rows": 2, "seconds": 1.5}
    failure = {"kind": "failure", "key": "k", "error": "x"}
    torn = [row(0, 0), row(0, 1), row(1, 1)]
    assert scores.collect(torn).rows == ()
    assert [r["metrics"]["teacher"] for r in scores.collect([*torn, done]).rows] == [1, 1]
    assert scores.collect([row(0, 0), failure]).failures == (failure,)
    again = scores.collect([row(0, 0), failure, row(0, 1), row(1, 1), done])
    assert again.failures == () and len(again.rows) == 2 and again.seconds == 1.5


def test_several_directories_side_by_side(tmp_path):
    one, two = fabricate.write(tmp_path / "one", examples=1), fabricate.write(tmp_path / "two", seed=1, examples=1)
    results = report.read([one, two])
    assert len(results.variants) == 24 and "plain (one)" in results.variants and "plain (two)" in results.variants
    assert results.original_len == 256


def test_missing_and_empty_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.jsonl"):
        report.write([tmp_path])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no results in it yet"):
        report.write([tmp_path])


def test_rows_of_an_evaluation_without_a_manifest(tmp_path):
    made_up = [
        {"variant": "", "task": "lines", "length": 64, "example": i, "metrics": {"teacher": i % 2}} for i in range(4)
    ]
    (tmp_path / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in made_up))
    assert "50%" in report.write([tmp_path], png=False).read_text()


def test_the_same_rows_give_the_same_bytes(made, tmp_path):
    for name in ("results.jsonl", "experiment.json"):
        shutil.copy(made / name, tmp_path / name)
    shutil.copytree(made / "train", tmp_path / "train")
    report.write([tmp_path])
    names = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(names) > 12
    for name in names:
        assert (made / name).read_bytes() == (tmp_path / name).read_bytes(), name


class Page(html.parser.HTMLParser):
    """Tags balanced, identifiers unique, references inside the page only."""

    VOID = {"meta", "link", "br", "img", "path", "use", "rect", "line"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [v for k, v in attrs.items() if k in ("href", "xlink:href", "src") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_alone(made):
    text = (made / "report.html").read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link == "data:," or (link.startswith("#") and link[1:] in page.ids), link
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert re.findall(r"<script.*?>", text) == ["<script>"], "inline only"
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    said = "".join(page.text)
    for variant in report.read([made]).variants:
        assert variant in said
    assert "0123456789abcdef" in said and "95% interval" in said
    assert not {light for light in style.VARIABLES if light in re.sub(r":root \{.*?\}", "", text)}, (
        "a fixed colour is left"
    )


def test_cells_hold_what_columns_are_sorted_by(made):
    text = (made / "report.html").read_text()
    section = text[text.index("id='task-passkey'") :].split("</table>")[0]
    cells = re.findall(r"<td(?: class='best')? data-value='([^']*)'>(\d+)%<", section)
    assert len(cells) == 12 * 4 and all(round(100 * float(value)) == int(shown) for value, shown in cells)
    assert [formats.data(x) for x in (math.nan, math.inf, 1)] == [
        "data-value=''", "data-value='Infinity'", "data-value='1.0'",
    ]  # fmt: skip


def test_depths_of_fractions_are_means():
    rows = [{"length": 8, "depth": i % 2, "metrics": {"match_all": (i % 4) / 4}} for i in range(40)]
    rows = [r | {"variant": "a", "task": "niah", "example": i} for i, r in enumerate(rows)]
    (metric,) = metrics.of(rows)
    assert metric.kind == "fraction" and metric.share
    _, _, cells = scores.depth_grid(rows, "match_all")
    assert (cells[0.0, 8].value, cells[1.0, 8].value) == (0.25, 0.5) and cells[0.0, 8].n == 20
    with style.drawing("test") as plt:
        figure = plots.by_depth(plt, scores.collect(rows), "niah", "match_all")
        assert [text.get_text() for text in figure.axes[0].texts] == ["25", "50"]


def test_names_are_escaped(tmp_path):
    made_up = [{"variant": "<b>|x", "task": "a&b", "length": 8, "example": 0, "metrics": {"teacher": 1}}]
    (tmp_path / "results.jsonl").write_bytes(records.encode(made_up[0]))
    text = report.write([tmp_path], png=False).read_text()
    assert "<b>|x" not in text and "&lt;b&gt;|x" in text and "a&amp;b" in text.lower()
    Page(text)
    assert "<b>\\|x" in (tmp_path / "tables.md").read_text()


def test_looks_follow_the_method(made):
    results = report.read([made])
    looks = style.looks(results)
    assert looks["yarn 4"].colour == looks["yarn 4 + training"].colour != looks["linear 4"].colour
    assert looks["plain"].colour == style.PLAIN[0]
    assert len({look.colour for look in looks.values()}) == 9
    assert looks["yarn 4"].line["linestyle"] != looks["yarn 4 + training"].line["linestyle"]


def test_the_same_positions_of_two_runs_are_drawn_otherwise():
    positions = [{"name": "yarn", "factor": 4.0}]
    names = ("yarn (A)", "yarn (B)", "trained (A)", "trained (B)")
    rows = [
        {"variant": v, "task": "t", "length": 8, "metrics": {"teacher": 1}, "trained": "trained" in v} for v in names
    ]
    entries = [{"name": v, "positions": positions} for v in names]
    looks = style.looks(scores.collect(rows, {"config": {"variants": entries}}))
    assert looks["yarn (A)"].colour == looks["trained (A)"].colour != looks["yarn (B)"].colour
    assert looks["yarn (B)"].colour == looks["trained (B)"].colour


def test_numbers_as_people_read_them():
    shown = [tables.number(x) for x in (2.345, 23.45, 234.5, 23456.0, math.inf, math.nan)]
    assert shown == ["2.35", "23.4", "234", "23,456", "> 10⁹", "not finite"]
    assert [tables.number(x) for x in (9.994, 9.9999, 99.94, 99.96, 999.7)] == ["9.99", "10.0", "99.9", "100", "1,000"]
    assert tables.number(0.987, True) == "99%"
    assert [tables.number(x) for x in (-1.574, -0.001, -1234.5)] == ["−1.57", "0.00", "−1,234"]
    spans = [tables.interval(stats.Estimate(-1.0, *bounds, 9)) for bounds in ((-1.5, 0.5), (1.5, 2.5), (math.nan,) * 2)]
    assert spans == ["−1.50 to 0.50", "1.50–2.50", ""]


def test_what_was_kept_from_an_earlier_version_is_marked_everywhere(tmp_path):
    rows = [
        {"variant": v, "task": "lines", "length": n, "example": i, "metrics": {"teacher": i % 2}, "key": f"{v}{n}"}
        for v in ("plain", "own")
        for n in (64, 128)
        for i in range(8)
    ]
    done = [{"kind": "done", "key": f"{v}{n}", "rows": 8} for v in ("plain", "own") for n in (64, 128)]
    (tmp_path / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows + done))
    (tmp_path / "experiment.json").write_text('{"original_len": 64, "kept": [{"key": "own128"}, {"key": "no"}, 3]}')
    page = report.write([tmp_path], png=False).read_text()
    assert page.count("50%†") == 1 and "† kept from an earlier version of its method or data" in page
    markdown, latex = ((tmp_path / f"tables.{kind}").read_text() for kind in ("md", "tex"))
    assert markdown.count("50%†") == 1 and "† kept from" in markdown
    assert latex.count(r"50\%$^\dagger$") == 1 and r"$^\dagger$ kept from" in latex
    with open(tmp_path / "results.csv") as file:
        kept = {(r["variant"], r["length"]) for r in csv.DictReader(file) if r["kept"] == "1"}
    assert kept == {("own", "128")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_chromium_draws_the_page(made, tmp_path):
    from PIL import Image

    picture, net = tmp_path / "page.png", tmp_path / "net.json"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
    ]
    command += ["--enable-logging=stderr", "--v=0", f"--log-net-log={net}", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={picture}", "--window-size=1200,3000", f"file://{made / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    image = np.asarray(Image.open(picture).convert("RGB"), np.int32)
    assert image.shape[:2] == (3000, 1200)
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    assert counts.max() < 0.95 * counts.sum() and len(colours) > 200
    # The palette's blue and vermillion are there: the plots were drawn, in their colours.
    for colour in ("#0072b2", "#d55e00"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(colours - rgb).sum(axis=1) < 12).any(), colour
    log = json.loads(net.read_text())
    asked = [e["params"] for e in log["events"] if "url" in e.get("params", {})]
    # The browser's own requests have no page as their initiator.
    assert [p["url"] for p in asked if p.get("initiator") not in (None, "not an origin")] == []
