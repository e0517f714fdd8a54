"""Published cases: read as they are, asked where they fit, and refused by name."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import cases, scoring
from giraffe_jax.evals.tasks import key_values, lines, needle, topics
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals import made

SHARED = Path(os.environ.get("GIRAFFE_DATA", Path(__file__).parents[3] / "shared" / "data"))
BYTES = ByteTokenizer()


def published(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs {name}")
    return path


def test_longevals_files_are_asked_as_they_are():
    path = published("longchat_lines/200_lines.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()][:3]
    task = evals.build(dict(name="lines", lengths=[4000, 16_000], files=[str(path)], n=3))
    for e, row in zip(lines.examples(task, BYTES, 16_000), rows, strict=True):
        key, position = row["random_idx"]
        cue = f"Line <{key}>: <REGISTER_CONTENT> is"
        assert BYTES.decode(e.prompt) == row["prompt"] + cue  # these prompts end with a space
        assert e.expected == row["expected_number"] and BYTES.decode(e.answer) == f" <{e.expected}"
        assert e.depth == pytest.approx(position / (row["num_lines"] - 1))
    task = evals.build(task.__class__(**task.__dict__ | dict(cue=False, scoring=("generate",))))
    assert BYTES.decode(lines.examples(task, BYTES, 16_000)[0].prompt) == rows[0]["prompt"]
    with pytest.raises(ConfigError, match=r"lines.files: no case takes 1 to 4,000 tokens; they take 1\d,\d{3} to"):
        lines.examples(task, BYTES, 4000)


def test_lost_in_the_middles_file_is_asked_as_it_is_or_at_depths():
    path = published("lost_in_the_middle/kv-retrieval-75_keys.jsonl.gz")
    with gzip.open(path, "rt") as stream:
        rows = [json.loads(next(stream)) for _ in range(2)]
    task = evals.build(dict(name="key_values", lengths=[8192], files=[str(path)], n=2, depths=[0.0, 0.5]))
    examples = key_values.examples(task, BYTES, 8192)
    assert [e.depth for e in examples] == pytest.approx([0, 0, 0.5, 0.5], abs=0.01)
    for e, row in zip(examples, rows * 2, strict=True):
        text = BYTES.decode(e.prompt)
        found = json.loads(text[text.index("{") : text.index("}") + 1])
        assert sorted(found.items()) == sorted(map(tuple, row["ordered_kv_records"]))
        assert e.expected == (row["value"],) == (found[row["key"]],)
    task = evals.build(dict(name="key_values", lengths=[8192], files=[str(path)], n=1, cue=False, scoring=["generate"]))
    (e,) = key_values.examples(task, BYTES, 8192)
    assert BYTES.decode(e.prompt) == key_values.prompt(rows[0]["ordered_kv_records"], rows[0]["key"])


def test_parquet_has_the_same_cases(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = lines.prompt(["big-cat", "old-dog", "red-fox"], [7, 50000, 12], 1)
    row = {"prompt": text, "expected_number": 50000, "num_lines": 3}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "100.parquet")
    task = evals.build(dict(name="lines", lengths=[900], files=[str(tmp_path / "100.parquet")]))
    (e,) = lines.examples(task, BYTES, 900)
    assert (e.expected, e.depth) == (50000, 0.5) and BYTES.decode(e.prompt).startswith(text)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="b.parquet is not Parquet that can be read"):
        list(cases.read([str(tmp_path / "b.parquet")], {}, "lines.files"))


def test_each_case_is_asked_at_the_shortest_length_that_holds_it(tmp_path):
    rows = [
        {"prompt": lines.prompt([f"k{i}" for i in range(n)], [1] * n, 0), "expected_number": 1} for n in (3, 40, 4, 9)
    ]
    path = made.lines_of(tmp_path / "l.jsonl", rows)
    task = evals.build(dict(name="lines", lengths=[1000, 2500], files=[path], n=2))
    short, long = lines.examples(task, BYTES, 1000), lines.examples(task, BYTES, 2500)
    assert len(short) == 2 and len(long) == 1 and all(len(e.prompt) < 1000 for e in short) < len(long[0].prompt)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"prompt": "x"}\n', r"field 'prompt' is missing in line 1 of .*l\.jsonl; the case has \['a'\]"),
        (b"[1]\n", r"l\.jsonl:1: expected an object, got list"),
        (b"{nothing\n", r"l\.jsonl:1 is not JSON"),
        (b'{"prompt": 3}\n', r"field 'prompt' is a number \(3\), of another kind in line 1 of "),
        (b'{"prompt": "no question", "expected_number": 3}\n', "a prompt asks for no line that it has"),
    ],
)
def test_wrong_cases_are_named(tmp_path, content, said):
    path = tmp_path / "l.jsonl"
    path.write_bytes(content)
    task = evals.build(dict(name="lines", lengths=[900], files=[str(path)]))
    with pytest.raises(ConfigError, match=said):
        lines.examples(task, BYTES, 900)


def test_files_that_are_none_are_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="lines.files: no such file: no/such"):
        list(cases.read(["no/such"], {}, "lines.files"))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}\n' * 999)[:-12])
    with pytest.raises(ConfigError, match=r"cut\.jsonl\.gz cannot be unpacked"):
        list(cases.read([str(cut)], {}, "x"))
    monkeypatch.setattr(cases, "LARGEST", 1000)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"a": "' + b"x" * 10**6 + b'"}'))
    with pytest.raises(ConfigError, match=r"bomb\.jsonl\.gz holds more than 1,000 bytes"):
        list(cases.read([str(bomb)], {}, "x"))
    with pytest.raises(ConfigError, match="have their own form and depths"):
        evals.build(dict(name="lines", lengths=[900], files=["x"], depths=[0.5]))


def test_topics_are_the_published_prompt(tmp_path):
    talks = made.conversations(tmp_path)
    rows = [json.loads(line) for line in Path(talks).read_text().splitlines()]
    task = evals.build(dict(name="topics", lengths=[4000], conversations=[talks], n=3, scoring=["teacher", "generate"]))
    for e in topics.examples(task, BYTES, 4000):
        text = BYTES.decode(e.prompt)
        number = int(re.findall(r"conversation on (\d+) different", text)[0])
        inside = [row for row in rows if row["conversation"] in text]
        assert len(inside) == number > 2 and 4000 - 500 < len(e.prompt) <= 4000
        first = min(inside, key=lambda row: text.index(row["conversation"]))
        assert e.expected == (first["topic"],) and BYTES.decode(e.answer) == " the" + first["topic"][3:]
        assert text.endswith(
            "next topic. Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. Do "
            "not summarize yourself.\n ASSISTANT: The first topic is"
        )
    case = {"test_id": 0, "prompt": text.split("\n ASSISTANT: The first")[0], "topics": [first["topic"]]}
    path = made.lines_of(tmp_path / "5_topics.jsonl", [case])
    (again,) = topics.examples(evals.build(dict(name="topics", lengths=[4000], files=[path])), BYTES, 4000)
    assert (again.prompt, again.answer) == (e.prompt, e.answer)
    with pytest.raises(ConfigError, match="either `files` of published cases or `conversations`"):
        evals.build(dict(name="topics", lengths=[4000]))


def test_a_needle_lies_between_sentences_at_its_depth(tmp_path):
    book = made.book(tmp_path)
    task = evals.build(
        dict(name="needle", lengths=[3000], documents=[book], n=2, depths=[0.0, 0.4, 1.0], distractors=3)
    )
    examples = needle.examples(task, BYTES, 3000)
    assert len({e.expected for e in examples}) == 6
    for e in examples:
        text = BYTES.decode(e.prompt)
        assert text.startswith("This is a very long story book: <book>") and text.endswith("magic Singapore number is:")
        assert text.count("The special magic ") == 4 + 1  # and the question says "the special magic"
        body = text[text.index("<book>") + 6 : text.index("</book>")]
        needle_text = f"\nThe special magic Singapore number is: {e.expected}.\n"
        assert abs(body.index(needle_text) / len(body) - e.depth) < 0.06
        assert all(part.rstrip()[-1] in ".!?" for part in body.split(needle_text) if part)
        assert 3000 - 60 < len(e.prompt) + len(e.answer) <= 3000
    with pytest.raises(ConfigError, match=r"needle.distractors: expected 0 to 6, got 7"):
        evals.build(dict(name="needle", lengths=[3000], documents=[book], distractors=7))


def test_examples_are_made_once_until_a_file_changes(tmp_path):
    path, tokenizer = made.conversations(tmp_path), ByteTokenizer()
    task = evals.build(dict(name="topics", lengths=[4000], conversations=[path], n=1))
    first = topics.examples(task, tokenizer, 4000)
    assert topics.examples(task, tokenizer, 4000) is first
    assert topics.examples(task, ByteTokenizer(), 4000) is not first
    made.conversations(tmp_path, count=20)
    os.utime(path, ns=(1, 1))
    again = topics.examples(task, tokenizer, 4000)
    assert again is not first and topics.examples(task, tokenizer, 4000) is again


def test_what_is_remembered_is_bounded(monkeypatch):
    made_up = [scoring.Example((1,) * 60, (2,), 3, 0.0)]
    examples, tokenizer = scoring.remembered(lambda task, tokenizer, length: list(made_up)), ByteTokenizer()
    monkeypatch.setattr(scoring, "KEPT", 150)
    task = evals.build(dict(name="passkey", lengths=[8, 9, 10]))
    kept = [examples(task, tokenizer, n) for n in (8, 9, 10)]
    assert examples(task, tokenizer, 10) is kept[2] and examples(task, tokenizer, 9) is kept[1]
    assert examples(task, tokenizer, 8) is not kept[0]
