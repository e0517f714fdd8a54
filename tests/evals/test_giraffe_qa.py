"""The Giraffe pair: prompts, places and alterations as published, read back from the prompts themselves."""

import json
import random
import re
from pathlib import Path

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals.tasks import giraffe_qa
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals import made

BYTES, LENGTH = ByteTokenizer(), 3000


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return made.questions(tmp_path_factory.mktemp("questions"))


def make(path, **keys):
    task = dict(name="giraffe_qa", kind="free_form", lengths=[1500, LENGTH], questions=[path], n=12)
    return evals.build(task | keys)


def asked(example):
    return BYTES.decode(example.prompt)


@pytest.mark.parametrize("kind", ["free_form", "altered_numeric"])
def test_six_cases_of_each_question_in_the_published_order(questions, kind):
    originals = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    if kind == "altered_numeric":
        originals = [row for row in originals if row["answer"].isdigit()]
    examples = giraffe_qa.examples(make(questions, kind=kind), BYTES, LENGTH)
    assert len(examples) == 12
    for number, e in enumerate(examples):
        row, variant, text = originals[number // 6], number % 6, asked(e)
        document, question = text.index("Document:\n"), text.index(f"Question:\n{row['question']}")
        assert (question < document) == (variant % 2 == 1)
        assert text.startswith("Answer the question based on the information provided in the document given below. The")
        assert text.endswith("\nAnswer:") and BYTES.decode(e.answer) == f" {e.expected[0]}"
        end = question if question > document else text.index("\nAnswer:")
        body = text[document + len("Document:\n") : end].rstrip()
        share = body.index(e.expected[0]) / len(body)  # the second mention follows at once
        low, high = [(0, 0.11), (0.08, 0.92), (0.87, 1)][variant // 2]
        assert low <= share <= high and e.depth == pytest.approx(share, abs=0.03)
        assert LENGTH - 40 < len(e.prompt) + len(e.answer) <= LENGTH
        if kind == "free_form":
            assert e.expected == (row["answer"],)
        else:
            assert e.expected[0] != row["answer"] and abs(int(e.expected[0]) - int(row["answer"])) <= 10
            assert not re.search(rf"(?<!\d){row['answer']}(?!\d)", body)


def test_a_question_is_altered_alike_at_every_length_and_in_all_its_cases(questions):
    task = make(questions, kind="altered_numeric")
    short, long = (giraffe_qa.examples(task, BYTES, n) for n in task.lengths)
    assert [e.expected for e in short] == [e.expected for e in long]
    assert [len({e.expected for e in short[i : i + 6]}) for i in (0, 6)] == [1, 1]


@pytest.mark.parametrize("answer", ["1492", "2100", "7", "2101", "45,300", "3.75", "999"])
def test_numbers_move_as_published(answer):
    document = f"It was {answer}. Not 1{answer}1, but {answer}, ({answer}) again."
    for seed in range(20):
        changed = giraffe_qa.altered(document, answer, random.Random(seed))
        assert changed is not None
        text, new = changed
        assert new != answer and text == f"It was {new}. Not 1{answer}1, but {new}, ({new}) again."
        if answer in ("1492", "2100"):
            assert 1 <= abs(int(new) - int(answer)) <= 10
        else:
            assert re.fullmatch(re.sub(r"\d", r"\\d", re.escape(answer)), new) and not new.startswith("0")


def test_a_document_that_has_every_other_number_is_left_out(tmp_path):
    years = " ".join(str(year) for year in range(1890, 1911))
    rows = [{"document": f"Built in 1900. {years}", "question": "When?", "answer": "1900"}]
    path = made.lines_of(tmp_path / "q.jsonl", rows)
    with pytest.raises(ConfigError, match="none whose answer is a number that can be altered"):
        giraffe_qa.examples(make(path, kind="altered_numeric"), BYTES, LENGTH)
    changed = giraffe_qa.altered(f"1900 {years.replace('1907', '')}", "1900", random.Random(0))
    assert changed is not None and changed[1] == "1907"


def test_published_files_are_what_is_built(questions, tmp_path):
    task = make(questions)
    built = giraffe_qa.examples(task, BYTES, LENGTH)
    path = made.lines_of(tmp_path / "2k.jsonl", [giraffe_qa.published(e, BYTES) for e in built])
    read = giraffe_qa.examples(make(questions, questions=[], files=[path]), BYTES, LENGTH)
    assert [(e.prompt, e.answer, e.expected) for e in read] == [(e.prompt, e.answer, e.expected) for e in built]
    bare = giraffe_qa.examples(make(questions, questions=[], files=[path], cue=False), BYTES, LENGTH)
    assert asked(bare[0]) == asked(built[0]).removesuffix("\nAnswer:")
    assert all(abs(e.depth - b.depth) < 0.15 for e, b in zip(read, built, strict=True))


def test_what_cannot_be_asked_is_said(questions, tmp_path):
    with pytest.raises(ConfigError, match="either `files` of published cases or `questions`"):
        make(questions, files=["x"])
    with pytest.raises(ConfigError, match="'teacher' needs cue=True"):
        make(questions, scoring=["teacher"], cue=False)
    with pytest.raises(ConfigError, match=r"free_form at length 50,000: .* got \d,\d{3} from .*questions\.jsonl"):
        giraffe_qa.examples(make(questions, lengths=[50_000]), BYTES, 50_000)
    words = made.lines_of(tmp_path / "w.jsonl", [{"document": "a b", "question": "?", "answer": "c"}])
    with pytest.raises(ConfigError, match="none whose answer is in its document"):
        giraffe_qa.examples(make(words), BYTES, LENGTH)
    with pytest.raises(ConfigError, match="none whose answer is a number"):
        giraffe_qa.examples(make(words, kind="altered_numeric"), BYTES, LENGTH)
    wrong = made.lines_of(tmp_path / "x.jsonl", [{"conversations": [{"from": "human", "value": 3}]}])
    with pytest.raises(ConfigError, match="not one text of 'human' and one of 'agent'"):
        giraffe_qa.examples(make(wrong, questions=[], files=[wrong]), BYTES, LENGTH)
