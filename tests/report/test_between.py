"""Two runs side by side: variants of one name, on the examples that both have measured."""

import csv
import json

import fabricate

from giraffe_jax import records, report
from giraffe_jax.report import between, scores


def write(directory, rows):
    directory.mkdir(parents=True)
    (directory / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows))
    return directory


def answers(variant, right, n=40, length=64, prompt="p"):
    return [
        {"variant": variant, "task": "lines", "length": length, "example": i, "prompt": f"{prompt}{i}",
         "metrics": {"teacher": int(i < right)}}
        for i in range(n)
    ]  # fmt: skip


def test_every_length_that_both_runs_have_is_compared(tmp_path):
    mine = [*answers("a", 40), *answers("a", 30, length=128), *answers("a", 5, length=256), *answers("only", 40)]
    theirs = [*answers("a", 10), *answers("a", 10, length=128), *answers("a", 5, length=256, prompt="q")]
    directories = [write(tmp_path / "A", mine), write(tmp_path / "B", theirs)]
    (one,) = between.compare(report.read(directories))
    assert (one.first, one.other) == ("A", "B")
    # At 256 the prompts differ; at 64 30 of 40 are right only in A, at 128 20.
    found = [(line.name, line.task, line.length, d.estimate.value, d.estimate.n) for line in one.lines
             if (d := line.difference)]  # fmt: skip
    assert found == [("a", "lines", 64, 0.75, 40), ("a", "lines", 128, 0.5, 40)] and len(one.lines) == 2
    page = report.write(directories, tmp_path / "out", png=False).read_text()
    section = page[page.index("<h2>A against B</h2>") :].split("</section>")[0]
    assert ">75%<" in section and ">25%<" in section and "<td class='best' data-value='0.5'>50<small>" in section
    assert section.count("<td>yes *</td>") == 2 and "2 pairs are compared" in section and "McNemar" in section
    markdown, latex = ((tmp_path / "out" / f"tables.{kind}").read_text() for kind in ("md", "tex"))
    assert "## A against B" in markdown and "| a | Line retrieval | 128 | 75% | 25% | **50 points [" in markdown
    assert "2 pairs are compared" in markdown and r"\textbf{50 points {[}" in latex and "A against B." in latex
    with open(tmp_path / "out" / "compared.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], r["length"], r["difference"], r["told_apart"], r["holm"], r["same"]) for r in rows] == [
        ("a", "64", "0.75", "1", "1", "0"), ("a", "128", "0.5", "1", "1", "0"),
    ]  # fmt: skip


def test_what_is_the_same_in_both_is_there_once_and_corrects_nothing(tmp_path):
    """Two versions of one method beside plain RoPE: they differ at 128 alone."""
    same = [*answers("plain", 20), *answers("plain", 10, length=128), *answers("own", 40)]
    directories = [
        write(tmp_path / "A", [*same, *answers("own", 30, length=128)]),
        write(tmp_path / "B", [*same, *answers("own", 10, length=128), *answers("plain", 3, length=256)]),
    ]
    for directory, digest in zip(directories, "ab", strict=True):
        own = {"name": "own", "positions": [{"name": "ramp.ramp", "factor": 2.0}]}
        manifest = {
            "config": {"variants": [{"name": "plain", "positions": []}, own]},
            "sources": {"own": {"ramp.py": digest, "shared.py": "c"}}, "original_len": 64,
        }  # fmt: skip
        (directory / "experiment.json").write_text(json.dumps(manifest))
    results = report.read(directories)
    assert results.variants == ["plain", "own (A)", "own (B)"] and results.baseline == "plain"
    assert len(results.of("lines", "plain")) == 120, "with what only B has measured"
    (one,) = between.compare(results)
    assert one.same == ("plain",) and one.code == {"own": ("ramp.py",)} and one.unsaid == {}
    assert [(line.length, line.difference is None) for line in one.lines] == [(64, True), (128, False)]
    page = report.write(directories, tmp_path / "out", png=False).read_text()
    for text in (page, *((tmp_path / "out" / f"tables.{kind}").read_text() for kind in ("md", "tex"))):
        assert "One pair is compared here" in text and "The code behind one name differs: own (ramp.py)." in text
        assert "The same in both, to the last bit, and shown once: plain." in text and "plain (A)" not in text
    assert "other code: ramp.py" in page and "<td>same</td>" in page
    with open(tmp_path / "out" / "compared.csv") as file:
        assert [(r["length"], r["same"], r["other_code"]) for r in csv.DictReader(file)] == [
            ("64", "1", ""), ("128", "0", "ramp.py"),
        ]  # fmt: skip


def test_a_run_that_did_not_record_its_code_is_named(tmp_path):
    directories = [write(tmp_path / "old", answers("own", 40)), write(tmp_path / "new", answers("own", 10))]
    config = {"config": {"variants": [{"name": "own", "positions": [{"name": "ramp.ramp"}]}]}}
    (directories[0] / "experiment.json").write_text(json.dumps(config))
    (directories[1] / "experiment.json").write_text(json.dumps(config | {"sources": {"own": {"ramp.py": "a"}}}))
    (one,) = between.compare(report.read(directories))
    assert one.unsaid == {"own": ("old",)} and one.code == {}
    assert "The code behind own may differ: old did not record it." in between.as_markdown(one)


def test_the_same_numbers_of_other_code_are_not_merged(tmp_path):
    directories = [write(tmp_path / name, answers("own", 40)) for name in "AB"]
    for directory in directories:
        manifest = {"config": {"variants": [{"name": "own"}]}, "sources": {"own": {"ramp.py": directory.name}}}
        (directory / "experiment.json").write_text(json.dumps(manifest))
    results = report.read(directories)
    assert results.variants == ["own (A)", "own (B)"]
    (one,) = between.compare(results)
    assert [line.difference for line in one.lines] == [None] and one.differences == []


def test_one_run_or_runs_without_common_examples_compare_nothing(tmp_path):
    a, b = write(tmp_path / "a", answers("v", 3)), write(tmp_path / "b", answers("v", 3, prompt="q"))
    assert between.compare(report.read([a])) == [] == between.compare(report.read([a, b]))


def test_what_a_run_has_only_configured_is_not_taken_for_anothers(tmp_path):
    a = fabricate.write(tmp_path / "a", examples=1)
    b = fabricate.write(tmp_path / "b", examples=1, seed=1, figures={"plain": fabricate.FIGURES["plain"]})
    assert sorted(report.read([a, b]).variants) == sorted(
        [*(v for v in fabricate.FIGURES if v != "plain"), "plain (a)", "plain (b)"]
    )


def test_directories_of_one_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "run", answers("v", 30))
    write(tmp_path / "b" / "run", answers("v", 3))
    results = report.read(["a/run", "b/run"])
    assert results.variants == ["v (a/run)", "v (b/run)"] and len(results.rows) == 80


def test_the_same_run_twice_differs_in_nothing():
    rows = list(fabricate.rows(figures={"plain": fabricate.FIGURES["plain"]}))
    both = [row | {"variant": f"plain ({run})"} for run in "AB" for row in rows]
    runs = {run: {"plain": f"plain ({run})"} for run in "AB"}
    (one,) = between.compare(scores.Results(tuple(both), runs=runs))
    assert len(one.lines) == 12 and {line.difference for line in one.lines} == {None} and one.differences == []
    assert "same" in between.as_markdown(one) and "compared here" not in between.as_markdown(one)
