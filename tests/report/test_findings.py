"""Sentences, cards and marks hold what the rows hold, and nothing that chance made."""

import math
from dataclasses import replace

import fabricate
import numpy as np
import pytest

from giraffe_jax import report
from giraffe_jax.evals import stats
from giraffe_jax.report import findings, forest, formats, metrics, paired, protocols, scores, style, tables

PLAIN, YARN = fabricate.FIGURES["plain"], fabricate.FIGURES["yarn 4"]


def read(figures=fabricate.FIGURES, **keywords):
    results = scores.collect(fabricate.rows(figures=figures, **keywords), fabricate.manifest())
    return results, tables.tables(results, report.score_all(results))


@pytest.fixture(scope="module")
def whole():
    return read()


def test_the_verdict_says_what_was_fabricated(whole):
    perplexity, lines = findings.verdict(*whole)
    assert perplexity.head == "Perplexity at 1,024 tokens (4×)" and lines.head == "Line retrieval at 1,024 tokens (4×)"
    assert perplexity.text.startswith("plain has 624 (") and ", against 29.0 at 256;" in perplexity.text
    free, taught = perplexity.text.split("; ")[1:]
    assert free.startswith("without training, yarn 4 is best with 40.0 (")
    assert f"{math.log(624 / 40):.2f} nats a token below plain [" in free
    assert taught.startswith("after training, yarn 4 + training has the lowest, 30.9 (")
    # 40 questions: 5 right of 13%, and 37 of 92%.
    assert lines.text.startswith("plain answers 12% (") and "against 98% at 256" in lines.text
    assert "yarn 4 has the highest, 92% (80–97%), 80 points above plain [" in lines.text
    assert "cannot be told from yarn 8" in lines.text, "92% both"
    longest = [said for said in findings.more(*whole) if "2,048" in said.head]
    assert "yarn 8 is best with 44.8" in longest[0].text and "ahead of all others" in longest[0].text


def test_cards_are_of_the_best_untrained_variant(whole):
    cards = findings.cards(*whole)
    assert [card.figure for card in cards] == ["15.6×", "92%", "98%"]  # 624 / 40
    assert "yarn 4" in cards[0].label and "12% with plain: 80 points" in cards[1].label


def test_twins_get_no_card_no_mark_and_an_honest_sentence():
    results, made = read({"plain": PLAIN, "twin": PLAIN, "other twin": PLAIN})
    assert findings.cards(results, made) == []
    assert all(not any(table.best.values()) for table in made)
    text = findings.verdict(results, made)[0].text
    assert "not told from plain (difference" in text and "cannot be told from" in text and "ahead" not in text


def test_what_is_shown_as_best_is_told_from_the_runner_up(whole):
    results, made = whole
    (lines,) = [t for t in made if (t.task, t.metric.name) == ("lines", "teacher")]
    # At 2,048 tokens 23 of 40 against 15; at the other lengths the first two differ by one at most.
    assert lines.best == {256: None, 512: None, 1024: None, 2048: "yarn 8"}
    (perplexity,) = [t for t in made if t.metric == metrics.PERPLEXITY]
    assert perplexity.best[2048] == "yarn 8"
    text = formats.markdown(perplexity)
    assert text.count("**") == 2 * sum(v is not None for v in perplexity.best.values()) and "**44.8**" in text


def test_a_loss_that_is_not_finite_is_said_and_never_compared():
    rows = [dict(r) for r in fabricate.rows(examples=8)]
    for r in rows:
        if r["task"] == "perplexity" and r["variant"] == "plain" and r["length"] >= 1024:
            r["metrics"] = r["metrics"] | {"nll": None}
    results = scores.collect(rows, fabricate.manifest())
    made = tables.tables(results, report.score_all(results))
    text = findings.verdict(results, made)[0].text
    assert text.startswith("plain is not finite") and "yarn 4 is best with 40.0" in text and "plain [" not in text
    assert not any("perplexity" in card.label for card in findings.cards(results, made))


def test_few_pairs_are_never_told_apart():
    rows = [
        {"variant": v, "task": "t", "length": 8, "example": i, "document": f"{i}", "metrics": {"nll": x, "tokens": 4}}
        for v, x in (("a", 1.0), ("b", 2.0))
        for i in range(paired.FEWEST)
    ]
    metric = metrics.PERPLEXITY
    apart = paired.difference(scores.collect(rows), "t", metric, 8, "a", "b")
    assert apart is not None and apart.better and apart.estimate.value == pytest.approx(-1.0)
    fewer = paired.difference(scores.collect([r for r in rows if r["example"]]), "t", metric, 8, "a", "b")
    assert fewer is not None and not fewer.apart
    assert paired.difference(scores.collect(rows[: paired.FEWEST]), "t", metric, 8, "a", "b") is None


def test_a_task_at_floor_is_one_sentence(tmp_path):
    nothing = (0.06, 0.03, 0.0, 0.0)
    figures = {"plain": (PLAIN[0], nothing, PLAIN[2]), "yarn 4": (YARN[0], nothing, YARN[2])}
    page = report.write([fabricate.write(tmp_path, figures=figures)], png=False).read_text()
    section = page[page.index("id='task-passkey'") :].split("</section>")[0]
    assert "At floor: even at 256 tokens (1×)" in section and "<svg" not in section and "<table" not in section
    assert not list((tmp_path / "plots").glob("passkey*")) and list((tmp_path / "plots").glob("lines*"))
    assert "passkey" in (tmp_path / "results.csv").read_text() and "Passkey" in (tmp_path / "tables.md").read_text()
    assert findings.cards(*read(figures))[-1].label.startswith("line retrieval")


def test_metrics_say_what_they_are():
    rows = [{"metrics": {"answer_nll": 0.5, "f1": 0.25, "exact": 1, "teacher": 0}}]
    found = {m.name: m for m in metrics.of(rows)}
    assert list(found) == ["teacher", "exact", "answer_nll", "f1"]
    assert (found["answer_nll"].better, found["exact"].kind, found["exact"].better) == ("low", "share", "high")
    assert found["f1"].better is None and paired.ranked({"a": 1.0, "b": 2.0}, found["f1"]) == []
    assert paired.ranked({"a": 0.1, "b": math.nan, "c": 0.2}, found["teacher"]) == ["c", "a"]
    assert paired.ranked({"a": 0.1, "c": 0.2}, found["answer_nll"]) == ["a", "c"]


def test_protocols_are_named_by_what_was_scored():
    def of(protocol, windows, tokens=8):
        return [
            {"variant": "v", "length": n, "document": f"d{i}", "window": k, "protocol": protocol,
             "metrics": {"tokens": tokens if k else n - 1}}
            for n in (16, 32) for i in range(2) for k in range(windows)
        ]  # fmt: skip

    whole = protocols.describe(of("strided", 1))
    assert "the first window of each document, all its tokens scored" in whole and "moved along" not in whole
    assert "at 16, 2 windows of 2 documents, 30 tokens scored; at 32, 2 windows of 2 documents, 62" in whole
    moved = protocols.describe(of("strided", 3))
    assert "moved along the text by a stride" in moved and "at 16, 6 windows of 2 documents, 62 tokens" in moved
    rows = [r | {"metrics": {"tokens": 8}} for r in of("aligned", 2)]
    same = protocols.describe(rows)
    assert "the same target tokens at every length" in same
    assert "Each variant at each length: 4 windows of 2 documents, 32 tokens scored." in same
    assert "Protocol new." in protocols.describe(of("new", 1))
    assert protocols.describe([]) == ""


def test_of_two_documents_nothing_is_told():
    results, made = read({name: fabricate.FIGURES[name] for name in ("plain", "yarn 4", "yarn 8")}, documents=2)
    (perplexity, lines), cards = findings.verdict(results, made), findings.cards(results, made)
    assert "yarn 4 has the lowest, 40.0, −2.75 nats a token against plain" in perplexity.text
    assert perplexity.text.endswith(". 2 documents are too few to tell variants apart; it takes 6.")
    assert not any(word in perplexity.text for word in ("[", "told from", "best", "ahead", "nan"))
    assert "40 examples]" in lines.text and "too few" not in lines.text
    assert [card.figure for card in cards] == ["92%", "98%"]
    (table,) = (t for t in made if t.metric == metrics.PERPLEXITY)
    assert not any(table.best.values()) and table.few() == "2 documents are too few to tell variants apart; it takes 6."
    text = formats.markdown(table)
    assert "**" not in text and "–" not in text and "nan" not in text
    assert table.few() in formats.all_markdown(results, made)


def test_differences_agree_with_numpy(whole):
    results, _ = whole
    d = paired.difference(results, "perplexity", metrics.PERPLEXITY, 1024, "ntk 4", "dynamic")
    nll = {v: [r["metrics"]["nll"] for r in results.of("perplexity", v, 1024)] for v in ("ntk 4", "dynamic")}
    by_document = np.subtract(nll["ntk 4"], nll["dynamic"]).reshape(2, 8).mean(axis=0)
    assert d is not None and d.estimate.n == 8 and d.estimate.value == pytest.approx(by_document.mean())
    # The t interval of eight numbers; 2,000 draws know the far percentiles to some 10%.
    half = 2.365 * by_document.std(ddof=1) / math.sqrt(8)
    assert (d.estimate.high - d.estimate.low) / 2 == pytest.approx(half, rel=0.25)


def test_what_stays_apart_under_holm_and_how_much_is_chance(whole):
    def told(variant, base, p, value=1.0, task="t"):
        e = stats.Estimate(value, value - (0.5 if p < 0.05 else 1.5), value + (0.5 if p < 0.05 else 1.5), 40)
        return paired.Difference(task, variant, base, metrics.of([{"metrics": {"teacher": 1}}])[0], 8, e, p)

    # 0.01 <= 0.05 / 3; 0.03 > 0.05 / 2 although it is below 0.05; the same pair the other way round counts once.
    found = [told("a", "c", 0.01), told("b", "c", 0.03), told("a", "b", 0.6), told("c", "a", 0.01, -1.0)]
    assert paired.holm(found) == {d.pair: d is found[0] for d in found[:3]}
    assert paired.chance(found) == (
        "3 pairs are compared here: if none differed, chance alone would tell about 0.2 apart at 95%. 2 are told "
        "apart, and 1 (starred) still under Holm's correction over all 3, by McNemar's exact test."
    )
    assert len(paired.holm([found[0], told("a", "c", 0.5, task="u")])) == 2, "of two tasks"
    # Two that have no interval do not make it harder for the others, and are said; of six questions 2^-5 = 0.031 is the
    # least that McNemar's test gives, and 0.05 / 2 takes seven.
    few = [replace(told(v, "z", 1.0), estimate=stats.Estimate(1.0, math.nan, math.nan, 2)) for v in "de"]
    six = [replace(told(v, "z", 0.031), estimate=stats.Estimate(1.0, 0.5, 1.5, 6)) for v in "fg"]
    assert paired.holm([*found, *few]) == paired.holm(found) | {d.pair: False for d in few}
    assert paired.chance(few) == (
        "2 pairs cannot be compared: 2 examples are too few to tell variants apart; it takes 6."
    )
    assert paired.chance([*six, few[0]]).startswith("One pair cannot be compared")
    assert not any(paired.holm(six).values())
    assert paired.chance(six).endswith("6 examples cannot give a star among so many; it takes 7.")
    results, made = whole
    (table,) = [t for t in made if t.metric == metrics.PERPLEXITY]
    shown = [d for *_, differences in forest.panels(results, table) for d in differences]
    said = paired.chance(shown)
    # Twelve variants: 11 pairs with plain and 11 with the best at each of two lengths, plain with the best twice.
    assert said.startswith("42 pairs are") and "about 2.1 apart" in said and "Student's t" in said
    assert 0 < sum(paired.holm(shown).values()) <= len({d.pair for d in shown if d.apart})


def test_stars_in_the_plot_are_what_stays_apart(whole):
    results, made = whole
    table = next(t for t in made if (t.task, t.metric.name) == ("lines", "teacher"))
    panels = forest.panels(results, table)
    stay = paired.holm(d for *_, found in panels for d in found)
    with style.drawing("test") as plt:
        figure = forest.draw(plt, table, panels, style.looks(results), results.variants)
        stars = sum(text.get_text().endswith(" *") for axes in figure.axes for text in axes.texts)
    assert stars == sum(stay[d.pair] for *_, found in panels for d in found) > 0
