"""No sentence, mark or star of a report contradicts its interval, and none is made of too few: over random results."""

import re

import numpy as np
import pytest

from giraffe_jax import report
from giraffe_jax.report import between, findings, forest, formats, latex, metrics, paired, scores, tables

ORIGINAL, LENGTHS = 256, (256, 512, 1024)
NUMBER = r"(−?[\d,]*\.?\d+)"
UNIT = r"(?:points|nats a token)"
COUNT = r", (\d+) (?:document|question|example)s?\]"
TOLD = re.compile(rf"{NUMBER} {UNIT} (above|below) \w+ \[{NUMBER} to {NUMBER}{COUNT}")
UNTOLD = re.compile(rf"not told from \w+ \(difference {NUMBER} {UNIT} \[{NUMBER} to {NUMBER}{COUNT}\)")
FEWEST = 6  # 2^(1-6) = 0.031 is the first below 0.05


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def experiment(seed):
    """Random results: a few variants, some alike and some apart, on one to twenty documents and questions."""
    rng = np.random.default_rng(seed)
    documents, windows = int(rng.choice([1, 2, 3, 5, 6, 7, 20])), int(rng.integers(1, 4))
    questions = int(rng.choice([1, 4, 5, 6, 7, 12, 40]))
    names = ["plain", *(f"v{i}" for i in range(rng.integers(1, 5)))]
    trained = {name: name != "plain" and rng.random() < 0.3 for name in names}
    gain = {name: rng.choice([0.0, 0.003, 0.05, 1.5]) * rng.choice([-1, 1]) for name in names}
    noise = rng.choice([1e-4, 0.02, 0.5])
    rows = []
    for length in LENGTHS:
        hard = rng.normal(2.0, 0.4, (documents, windows))
        asked = rng.random(questions)
        for name in names:
            if name != "plain" and rng.random() < 0.1:
                continue  # not measured yet
            head = {"variant": name, "trained": trained[name], "length": length}
            loss = hard + gain[name] + rng.normal(0, noise, hard.shape)
            for (d, w), nll in np.ndenumerate(loss):
                broken = rng.random() < 0.003
                rows.append(
                    head | {"task": "perplexity", "document": f"d{d}", "window": w, "protocol": "aligned",
                            "metrics": {"nll": None if broken else float(nll), "tokens": 32 + 8 * w}}
                )  # fmt: skip
            right = asked + rng.normal(0, noise, questions) + gain[name] < 0.7
            for i in range(questions):
                values = {"teacher": int(right[i]), "answer_nll": float(rng.exponential())}
                rows.append(head | {"task": "lines", "example": i, "question": "?", "metrics": values})
    variants = [
        {"name": name, "positions": [] if name == "plain" else [{"name": "linear", "factor": float(2 + i)}]}
        for i, name in enumerate(names)
    ]
    manifest = {"original_len": ORIGINAL, "config": {"variants": variants}}
    return scores.collect(rows, manifest), {"perplexity": documents, "lines": questions}


def check_text(text):
    """A sentence on its own: what it tells apart excludes zero, and what it does not tell apart does not."""
    assert not re.search(r"\b(nan|inf|None)\b", text), text
    for amount, way, low, high, n in TOLD.findall(text):
        amount, low, high = map(number, (amount, low, high))
        assert 0 < low <= high and low <= amount * 1.01 + 0.01 and amount <= high * 1.01 + 0.01, text
        assert way in ("above", "below") and int(n) >= FEWEST, text
    for amount, low, high, n in UNTOLD.findall(text):
        amount, low, high = map(number, (amount, low, high))
        assert low <= 0 <= high and low - 0.01 <= amount <= high + 0.01 and int(n) >= FEWEST, text
    assert text.count("[") == len(TOLD.findall(text)) + len(UNTOLD.findall(text)), text
    for part in text.split("; "):
        assert not ("is best" in part and "cannot be told" in part), text
    if "too few" in text:
        assert not re.search(r"\[|told from|is best|ahead|above|below", text), text


@pytest.mark.parametrize("seed", [*range(30), 306])  # 306: a ratio of perplexities of 1.000004 at least
def test_sentences_marks_and_stars_agree_with_intervals(seed):
    results, counts = experiment(seed)
    made = tables.tables(results, report.score_all(results))
    said = findings.verdict(results, made) + findings.more(results, made)
    assert len(said) >= 2 or any(findings.floor(t) for t in made)
    for sentence in said:
        check_text(sentence.text)
        n = counts["perplexity" if "Perplexity" in sentence.head else "lines"]
        several = "not finite" not in sentence.text and re.search(r"without training|after training", sentence.text)
        assert ("too few" in sentence.text) == (n < FEWEST) or not several, (n, sentence.text)
    for card in findings.cards(results, made):
        (span,) = re.findall(r"\[(.+?) to (.+?), (\d+) \w+\]", card.label)
        assert int(span[2]) >= FEWEST
        low, high = (number(re.sub("[×>]| 10⁹", "", x) or "1e9") for x in span[:2])
        assert (low > 1 if "lower perplexity" in card.label else low > 0) and low <= high, card
    for table in made:
        shown = counts[table.task]
        for n in table.lengths:
            best = table.best.get(n)
            assert best is None or shown >= FEWEST
            if best is not None:  # compared anew: no windows and examples but those of this length
                runner = table.ranked(n)[1]
                d = paired.difference(results, table.task, table.metric, n, best, runner)
                assert d is not None
                assert d.estimate.low > 0 if table.metric.better == "high" else d.estimate.high < 0
        text = (
            formats.markdown(table) + latex.table(table) + formats.as_html(table, dict.fromkeys(results.variants, ""))
        )
        assert not re.search(r"\b(nan|inf)\b", text)
        few = shown < FEWEST and table.metric.better is not None
        assert (f"{shown} " in table.few() and "too few" in table.few()) == few
        losses = [s.estimate for s in table.cells.values() if not table.metric.share]
        assert all(not e.low <= 0 for e in losses), "of losses no interval reaches zero"
        assert all(np.isnan(e.low) == (shown < FEWEST or np.isnan(e.value)) for e in losses)
    for table in findings.main_tables(made):
        found = [d for *_, each in forest.panels(results, table) for d in each]
        stay = paired.holm(found)
        for d in found:
            text = forest.written(d, stay[d.pair])
            span = re.fullmatch(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]( \*)?", text)
            assert (span is None) == (counts[table.task] < FEWEST), text
            if span is None:
                assert re.fullmatch(NUMBER, text) and not d.apart
                continue
            low, high = number(span[2]), number(span[3])
            assert d.apart == (low > 0 or high < 0), text
            assert not span[4] or d.apart
        text = paired.chance(found) if found else ""
        told = re.search(r"(\d+) (?:is|are) told apart, and (\d+) \(starred\) still .* over all (\d+)", text)
        assert (told is not None) == any(counts[table.task] >= FEWEST for _ in found), text
        if told:
            pairs = {d.pair: d for d in found}
            assert int(told[2]) <= int(told[1]) <= int(told[3]) == len(pairs)
            assert int(told[2]) == sum(forest.written(d, stay[pair]).endswith("*") for pair, d in pairs.items())


@pytest.mark.parametrize("seed", range(12))
def test_comparisons_of_runs_agree_with_their_intervals(seed):
    one, counts = experiment(seed)
    rng = np.random.default_rng(1000 + seed)
    rows, runs = [], {"A": {}, "B": {}}
    for row in one.rows:
        moved = dict(row["metrics"])
        if "teacher" in moved and rng.random() < 0.3:
            moved["teacher"] = 1 - moved["teacher"]
        for loss in ("nll", "answer_nll"):
            if moved.get(loss) is not None:
                moved[loss] += 0.01 * float(rng.normal())
        name = row["variant"]
        runs["A"][name], runs["B"][name] = (name, name) if name == "plain" else (f"{name} (A)", f"{name} (B)")
        rows += [{**row, "variant": runs["A"][name]}]
        rows += [{**row, "variant": runs["B"][name], "metrics": moved}] if name != "plain" else []
    (comparison,) = between.compare(scores.Results(tuple(rows), runs=runs))
    assert comparison.same == ("plain",)
    text = between.as_markdown(comparison)
    lines = [line for line in text.splitlines() if re.match(r"\| v\d", line)]
    assert len(lines) == len(comparison.lines) == len(re.findall(r"^v\d.*\\\\$", between.as_latex(comparison), re.M))
    for line, kept in zip(lines, comparison.lines, strict=True):
        *_, amount, _, told = (cell.strip() for cell in line.strip("|").split("|"))
        span = re.search(rf"\[{NUMBER} to {NUMBER}\]", amount)
        assert (span is None) == (counts[kept.task] < FEWEST) == (told == "too few"), line
        apart = span is not None and (number(span[1]) > 0 or number(span[2]) < 0)
        assert apart == told.startswith("yes") == amount.startswith("**"), line
    assert not re.search(r"\b(nan|inf)\b", text + between.as_latex(comparison) + between.as_csv([comparison]))
    if any(counts[line.task] >= FEWEST for line in comparison.lines):
        enough = sum(counts[line.task] >= FEWEST for line in comparison.lines)
        assert f"Holm's correction over all {enough}," in text, "nothing that is the same, or cannot be told"


def test_metrics_count_what_is_independent():
    rows = [{"document": "a", "metrics": {"nll": 1.0, "tokens": 3}}]
    assert metrics.unit(rows) == "document" and metrics.unit([{"metrics": rows[0]["metrics"]}]) == "window"
    assert metrics.unit([{"question": "?", "metrics": {"x": 1}}]) == "question"
    assert metrics.unit([{"metrics": {"x": 1}}]) == "example"
