"""The landmark prompt against the text published with the method, and the budget against counting."""

import re

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.data import synthetic
from giraffe_jax.evals import run
from giraffe_jax.evals.tasks import passkey
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals.conftest import Begun


def make(**keys):
    return evals.build(dict(name="passkey", lengths=[512]) | keys)


def text(example):
    return ByteTokenizer().decode(example.prompt), ByteTokenizer().decode(example.answer)


def test_prompt_is_the_published_text():
    assert passkey.prompt(12345, 12, 0.5) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
        "about the important information there.\n"
        "The gr\n"
        "The pass key is 12345. Remember it. 12345 is the pass key.\n"
        "The gr\n"
        "What is the pass key? The pass key is"
    )
    sentences = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert passkey.prompt(1, 250, 1.0).split("\n")[1] == f"{sentences} {sentences} {sentences}"[:250]
    assert passkey.prompt(1, 250, 1.0).split("\n")[3] == ""


@pytest.mark.parametrize("length", [400, 512, 1111])
@pytest.mark.parametrize("bos", [False, True])
def test_landmark_fills_the_length_exactly(length, bos):
    for example in passkey.examples(make(n=2), Begun() if bos else ByteTokenizer(), length):
        assert (
            len(example.prompt) + len(example.answer) == length
        )  # bytes: one more filler character always fits until it is full
        assert (example.prompt[0] == 256) == bos


@pytest.mark.parametrize("style", ["landmark", "compact"])
def test_examples_are_answerable_and_stand_at_their_depth(style):
    task = make(n=3, style=style, depths=[0.0, 0.5, 1.0])
    for i, example in enumerate(passkey.examples(task, ByteTokenizer(), 512)):
        before, answer = text(example)
        assert example.depth == (0.0, 0.5, 1.0)[i // 3]
        digits = 5 if style == "landmark" else synthetic.VALUE_DIGITS
        assert int(answer) == example.expected and len(str(example.expected)) == digits
        assert 512 - 21 < len(example.prompt) + len(example.answer) <= 512
        found = [m.start() for m in re.finditer(str(example.expected), before)]
        first_filler, last_filler = before.find("The grass"), before.rfind("The ", 0, before.rfind("What is"))
        assert found and (found[0] < first_filler if example.depth == 0 else True)
        if example.depth == 0.5:
            assert 0.3 < found[0] / len(before) < 0.7
        if example.depth == 1 and style == "landmark":
            assert found[-1] > last_filler


def test_examples_depend_on_their_own_number_only():
    few, many = (passkey.examples(make(n=n, depths=[0.5]), ByteTokenizer(), 512) for n in (2, 5))
    assert many[:2] == few
    assert len({e.expected for e in many}) == 5
    assert passkey.examples(make(n=2, depths=[0.5], seed=1), ByteTokenizer(), 512) != few
    both = passkey.examples(make(n=2, depths=[0.25, 0.5]), ByteTokenizer(), 512)
    assert both[2:] == few and {e.expected for e in both[:2]}.isdisjoint({e.expected for e in few})


def test_prompts_do_not_depend_on_how_they_are_scored():
    assert passkey.examples(make(scoring=["generate", "teacher"]), ByteTokenizer(), 512) == passkey.examples(
        make(scoring=["teacher"]), ByteTokenizer(), 512
    )


@pytest.mark.parametrize(
    "keys, match",
    [
        (dict(scoring=["teach"]), "Did you mean 'teacher'"),
        (dict(scoring=[]), "the list is empty"),
        (dict(depths=[1.5]), ">= 0 and <= 1"),
        (dict(n=0), ">= 1"),
        (dict(style="landmarks"), "Did you mean 'landmark'"),
        (dict(deph=[0.5]), "Did you mean 'depths'"),
        (dict(name="pasky"), "Did you mean 'passkey'"),
        (dict(lengths=[]), "expected token counts"),
    ],
)
def test_wrong_keys_are_named(keys, match):
    with pytest.raises(ConfigError, match=match):
        make(**keys)


@pytest.mark.parametrize("style", ["landmark", "compact"])
def test_a_length_too_short_says_so(style):
    with pytest.raises(ConfigError, match=r"passkey( \(compact\))? at length 60"):
        passkey.examples(make(style=style), ByteTokenizer(), 60)


def test_rows_of_both_scorings(tiny):
    task = make(lengths=[400], n=2, depths=[0.0, 1.0], scoring=["generate", "teacher"])
    rows = list(run.evaluate(tiny, [task], lambda length: tiny.config.bind(length=length), variant="plain"))
    assert len(rows) == 4 and [r["example"] for r in rows] == [0, 1, 2, 3]
    for row in rows:
        assert (row["variant"], row["task"], row["length"]) == ("plain", "passkey", 400)
        assert set(row["metrics"]) == {"generate", "generate_last", "teacher", "answer_nll"}
        assert row["depth"] in (0.0, 1.0) and isinstance(row["output"], str)
        assert row["answer_tokens"] == len(str(row["expected"])) + 1  # its space; columns say what both take
