"""Two runs side by side: variants of one name, on the examples that both have measured."""

import fabricate
import pytest

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


def test_what_both_runs_have_is_compared_at_the_longest_common_length(tmp_path):
    mine = [*answers("a", 40), *answers("a", 30, length=128), *answers("a", 5, length=256), *answers("only", 40)]
    theirs = [*answers("a", 10), *answers("a", 10, length=128), *answers("a", 5, length=256, prompt="q")]
    directories = [write(tmp_path / "A", mine), write(tmp_path / "B", theirs)]
    (one,) = between.compare(report.read(directories))
    assert (one.first, one.other) == ("A", "B")
    ((name, d),) = one.found
    # At 256 the prompts differ; at 128 20 of 40 are right only in A.
    assert (name, d.variant, d.base, d.length, d.task) == ("a", "a (A)", "a (B)", 128, "lines")
    assert d.estimate.value == pytest.approx(0.5) and d.estimate.n == 40 and d.apart
    page = report.write(directories, tmp_path / "out", png=False).read_text()
    section = page[page.index("<h2>A against B</h2>") :].split("</section>")[0]
    assert ">75%<" in section and ">25%<" in section and "<td class='best' data-value='0.5'>50<small>" in section
    assert "<td>yes *</td>" in section and "One pair is compared" in section and "McNemar" in section


def test_one_run_or_runs_without_common_examples_compare_nothing(tmp_path):
    a, b = write(tmp_path / "a", answers("v", 3)), write(tmp_path / "b", answers("v", 3, prompt="q"))
    assert between.compare(report.read([a])) == [] == between.compare(report.read([a, b]))


def test_what_a_run_has_only_configured_is_not_taken_for_anothers(tmp_path):
    a = fabricate.write(tmp_path / "a", examples=1)
    b = fabricate.write(tmp_path / "b", examples=1, figures={"plain": fabricate.FIGURES["plain"]})
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
    assert [(d.task, d.length) for _, d in one.found] == [("perplexity", 2048), ("lines", 2048), ("passkey", 2048)]
    assert all(d.estimate.value == 0 and not d.apart for _, d in one.found)
