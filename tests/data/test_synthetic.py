"""Synthetic documents, read back by a reader of its own: every answer must be what its record says."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_jax.data import synthetic
from giraffe_jax.data.synthetic import (
    KINDS,
    WORDS,
    draw_keys,
    lines_document,
    passkey_document,
    piece_encoder,
    shortest_length,
    synthetic_document,
    text_of,
)
from giraffe_jax.tokenizer import ByteTokenizer

RECORDS = {"lines": r"^line ([a-z ]+) (\d+)$", "records": r"^set ([a-z ]+) (\d+)$"}
ASKS = {"lines": r"^ask ([a-z ]+) (\d+)$", "records": r"^get ([a-z ]+) (\d+)$"}


def word_count(text: str) -> int:
    """Tokens as a small BPE has them: words and numbers with their space, signs, line breaks."""
    return len(re.findall(r" ?[A-Za-z]+| ?\d+|[^\w\s]|\n", text))


@pytest.mark.parametrize("kind", ["lines", "records"])
@given(seed=st.integers(0, 10**6), length=st.integers(20, 3000))
@settings(max_examples=60, deadline=None)
def test_answers_are_the_values_of_the_records(kind, seed, length):
    text = text_of(synthetic_document(np.random.default_rng(seed), kind, length, word_count))
    records = re.findall(RECORDS[kind], text, re.M)
    asked = re.findall(ASKS[kind], text, re.M)
    values = dict(records)
    assert len(values) == len(records) >= 1, "keys repeat"
    assert asked and all(values[key] == value for key, value in asked)
    assert word_count(text) <= length


@given(seed=st.integers(0, 10**6), length=st.integers(40, 3000))
@settings(max_examples=60, deadline=None)
def test_passkey_is_said_once_and_asked(seed, length):
    text = text_of(synthetic_document(np.random.default_rng(seed), "passkey", length, word_count))
    said = re.findall(r"^The pass key is: (\d{2})$", text, re.M)
    answers = re.findall(r"^What is the pass key\? The pass key is: (\d{2})$", text, re.M)
    assert len(said) == 1 and set(answers) == set(said)
    assert word_count(text) <= length
    assert text.index("The pass key is:") < text.index("What is the pass key")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [64, 256, 512, 1024, 2048])
def test_lengths_are_filled(kind, length):
    longest = max(word_count(text) for text in ("What is the pass key? The pass key is: 12\n", "line king 12\n"))
    for seed in range(20):
        document = synthetic_document(np.random.default_rng(seed), kind, length, word_count)
        assert length - 2 * longest < word_count(text_of(document)) <= length


@pytest.mark.parametrize("length", [256, 1024, 4096, 20_000])
def test_one_question_at_a_depth(length):
    for depth in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(length)
        document = lines_document(rng, length, word_count, queries=1, depth=depth)
        keys = [key for key, _ in re.findall(RECORDS["lines"], text_of(document), re.M)]
        [(asked, _)] = re.findall(ASKS["lines"], text_of(document), re.M)
        assert keys.index(asked) == round(depth * (len(keys) - 1))
        assert document[-1].role == "answer" and document[-2].role == "query"
        assert length - 2 * word_count("line king queen 123\n") < word_count(text_of(document)) <= length
        passkey = text_of(passkey_document(rng, length, word_count, depth=depth))
        before, after = passkey.split("The pass key is:", 1)
        filler_after = after.split("What is the pass key")[0]
        share = word_count(before) / (word_count(before) + word_count(filler_after))
        assert abs(share - depth) < 0.1


def test_a_word_is_the_key_of_one_record_and_filler_takes_the_rest():
    assert sorted(draw_keys(np.random.default_rng(0), 3 * len(WORDS))) == sorted(WORDS)
    document = lines_document(np.random.default_rng(0), 2048, word_count, queries=1)
    roles = [piece.role for piece in document]
    assert roles.count("record") == len(WORDS) and roles[-2:] == ["query", "answer"]
    assert roles[len(WORDS) : -2] == ["filler"] * (len(roles) - len(WORDS) - 2)
    assert 2048 - 8 < word_count(text_of(document)) <= 2048


@pytest.mark.parametrize("kind", ["records", "lines", "passkey"])
def test_shortest_length_always_suffices_and_one_less_may_not(kind):
    count = len
    need = shortest_length(kind, count)
    for seed in range(200):
        document = synthetic_document(np.random.default_rng(seed), kind, need, count)
        assert len(text_of(document)) <= need and any(piece.role == "answer" for piece in document)
    with pytest.raises(ValueError, match=str(need // 2)):
        synthetic_document(np.random.default_rng(0), kind, need // 2, count)


@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 4), spare=st.integers(0, 300), gap=st.sampled_from([0.0, 0.3])
)
@settings(max_examples=150, deadline=None)
def test_the_questions_asked_for_are_all_there_whatever_keys_cost(seed, queries, spare, gap):
    length = 40 * queries + 40 + spare  # bytes: words of very different cost
    document = lines_document(np.random.default_rng(seed), length, len, queries=queries, gap=gap)
    assert [piece.role for piece in document].count("answer") == queries
    assert len(text_of(document)) <= length


def test_gap_puts_filler_between_records_and_questions():
    document = lines_document(np.random.default_rng(1), 500, word_count, gap=0.5)
    roles = [piece.role for piece in document]
    filler = sum(word_count(piece.text) for piece in document if piece.role == "filler")
    assert 60 < filler < 300
    first, last = roles.index("filler"), len(roles) - 1 - roles[::-1].index("filler")
    assert set(roles[:first]) == {"record"} and set(roles[first : last + 1]) == {"filler"}


def test_encoding_by_pieces_is_the_tokenizers_own():
    tokenizer = ByteTokenizer()
    encode = piece_encoder(tokenizer)
    for kind in KINDS:
        document = synthetic_document(np.random.default_rng(3), kind, 900, lambda text: len(encode(text)))
        assert [t for piece in document for t in encode(piece.text)] == tokenizer.encode(text_of(document))


def test_a_tokenizer_that_joins_pieces_is_refused():
    class Spaced(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(" " + text)

    with pytest.raises(ValueError, match="joins text"):
        piece_encoder(Spaced())


def test_words_are_usable_as_keys():
    assert len(set(WORDS)) == len(WORDS) > 200 and all(re.fullmatch("[a-z]+", word) for word in WORDS)
    assert synthetic.line_record("king", "482") == "line king 482\n" and synthetic.line_query("king") == "ask king"
