"""Effective lengths: from shares of right answers to the page, the tables and the CSV."""

import csv

from giraffe_jax import records, report
from giraffe_jax.report import scores, tables


def rows(n=40, **right):
    """Rows of variants of which so many answers are right at 64, 128 and 256 tokens."""
    return [
        {"variant": v, "task": "lines", "length": length, "example": i, "metrics": {"teacher": int(i < k), "nll_": 0.5}}
        for v, counts in right.items()
        for length, k in zip((64, 128, 256), counts, strict=True)
        for i in range(n)
    ]


def test_effective_lengths_are_shown_and_written(tmp_path):
    # Wilson's lower bound of 39 of 40 is 87.1%, of 38 it is 83.5%.
    made_up = rows(whole=(40, 40, 39), gap=(39, 38, 40), none=(38, 40, 40))
    (tmp_path / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in made_up))
    page = report.write([tmp_path], png=False).read_text()
    first, other = tables.tables(results := scores.collect(made_up), report.score_all(results))
    assert first.effective == {"whole": 256, "gap": 64, "none": None} and other.effective == {}
    assert tables.effective(first, 0.83) == {"whole": 256, "gap": 256, "none": 256}
    with open(tmp_path / "results.csv") as file:
        lines = {r["variant"]: r for r in csv.DictReader(file) if r["metric"] == "effective length"}
    assert {v: (r["value"], r["length"], r["low"], r["n"]) for v, r in lines.items()} == {
        "whole": ("256.0", "256", "", "40"), "gap": ("64.0", "256", "", "40"), "none": ("", "256", "", "40"),
    }  # fmt: skip
    text = (tmp_path / "tables.md").read_text()
    assert text.count("effective length |") == 1 and "| < 64 |" in text and "reach below 85%." in text
    assert page.count("<th scope='col'>effective length<small>at 85%</small></th>") == 1
    assert "<td data-value='0.0'>&lt; 64</td>" in page and "does not reach below 85%" in page


def test_too_few_questions_are_said():
    results = scores.collect(rows(n=16, a=(16, 16, 16)))
    table, _ = tables.tables(results, report.score_all(results))
    assert table.effective == {"a": None} and tables.effective_text(table, "a") == "too few"
    assert "With 16 questions even all right is not enough for that; it takes 22." in tables.effective_note(table)
