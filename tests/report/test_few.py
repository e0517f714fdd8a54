"""What a run says before it starts of examples that are too few, and what its page says of them."""

import re

import fabricate
import pytest

from giraffe_jax import evals, report
from giraffe_jax.config import ConfigError
from giraffe_jax.lab import run as lab_run
from giraffe_jax.report import few
from giraffe_jax.tokenizer import ByteTokenizer


def said(*tasks):
    return few.before([evals.build(task) for task in tasks], ByteTokenizer)


def books(folder, count, size=400):
    folder.mkdir()
    for i in range(count):
        (folder / f"book{i}.txt").write_text(f"line {i}\n" * (size // 7))
    return [str(folder)]


def test_two_books_are_said_to_be_too_few_however_many_their_windows(tmp_path):
    task = dict(name="perplexity", lengths=[64, 128], documents=books(tmp_path / "two", 2), n=8, stride=16)
    assert said(task) == [
        "perplexity: 2 documents (8 windows of them) are too few to tell variants apart; it takes 6 documents of 128 "
        "tokens or more in config.tasks[0].documents."
    ]
    assert said(task | {"documents": books(tmp_path / "six", 6)}) == []
    (short,) = said(task | {"documents": books(tmp_path / "ten", 10), "n": 5})
    assert short.startswith("perplexity: 5 documents are") and short.endswith("and config.tasks[0].n=6 or more.")
    # A document that is too short for the longest length is none.
    (tmp_path / "six" / "book0.txt").write_text("short\n")
    assert said(task | {"documents": [str(tmp_path / "six")]})[0].startswith("perplexity: 5 documents (8 windows")
    with pytest.raises(ConfigError, match="perplexity at length 4,096: expected 4,096 tokens"):
        said(task | {"lengths": [4096]})


def test_questions_and_passages_are_counted_too(tmp_path):
    lines = dict(name="lines", lengths=[512], n=5, style="compact")
    assert said(dict(name="passkey", lengths=[512], n=6), lines) == [
        "lines: 5 examples a length are too few to tell variants apart; it takes config.tasks[1].n=6 or more."
    ]
    copying = dict(name="copying", kind="text", lengths=[128], n=20, documents=books(tmp_path / "one", 1), passage=16)
    (text,) = said(copying)
    assert text.startswith("copying/text: 1 document (20 windows of them) is too few")
    assert said(dict(name="copying", lengths=[128], n=20)) == []


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_the_page_says_it_in_every_place_and_nothing_else(tmp_path, documents):
    figures = {name: fabricate.FIGURES[name] for name in ("plain", "yarn 4", "yarn 8")}
    page = report.write([fabricate.write(tmp_path, figures=figures, documents=documents)], png=False).read_text()
    count = f"{documents} document{'s' * (documents != 1)}"
    want = f"{count} {'is' if documents == 1 else 'are'} too few to tell variants apart; it takes 6."
    # In the verdict, below the differences and below the table, and in what follows on other lengths.
    assert page.count(want) >= 4
    section = page[page.index("id='task-perplexity'") :].split("</section>")[0]
    assert "class='best'" not in section and "There are too few examples for intervals." in section
    assert "Shaded" not in section and "Marked" not in section and not re.search(r"\bnan\b", page)
    (svg,) = re.findall(r"<figure>.*?perplexity-forest.*?</figure>", page, re.S)
    assert "[" not in re.sub(r"<[^>]*>", "", svg), "no interval beside a difference"
    assert "95% intervals" not in svg.split("</svg>")[1] and f"6 pairs cannot be compared: {want}" in svg
    tex = (tmp_path / "tables.tex").read_text()
    first = tex[: tex.index(r"\end{table}")]
    assert want in first and r"\scriptsize" in first and "textbf" not in first and "--" not in first


def test_a_run_says_it_when_it_starts_and_draws_what_it_measures(tmp_path, monkeypatch):
    (tmp_path / "few_ramp.py").write_text(
        "from giraffe_jax.positions import Encoding\n\n\n"
        "def ramp(e: Encoding) -> Encoding:\n    return e.replace(inv_freq=e.inv_freq / (1 + e.planes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("giraffe_jax.report.plots.draw", lambda *_, **__: [])
    task = dict(name="perplexity", lengths=[64], documents=books(tmp_path / "books", 2), n=4, stride=16)
    variants = [dict(name="plain"), dict(name="mine", positions=[dict(name="few_ramp.ramp")])]
    settings = dict(name="t", source="giraffe-mini", variants=variants, tasks=[task])
    said = []
    page = lab_run.run(settings, tmp_path / "run", say=said.append).page.read_text()
    assert "to measure" in said[0] and said[1].startswith("  perplexity: 2 documents (4 windows of them) are too few")
    assert any("2 documents are too few to tell variants apart; it takes 6." in line for line in said[2:])
    own = page[page.index("few_ramp.ramp()") :].split("</tr>")[0]
    assert "stretch of each plane: 1, 2, 3, 4" in own and "a method of one&#x27;s own" in own
