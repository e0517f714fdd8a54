"""Synthetic documents, read back by a reader of its own: every answer must be what its record says."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_jax.data import synthetic
from giraffe_jax.data.synthetic import (
    FILLER,
    KINDS,
    WORDS,
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
@settings(max_examples=60)
def test_answers_are_the_values_of_the_records(kind, seed, length):
    text = text_of(synthetic_document(np.random.default_rng(seed), kind, length, word_count))
    records = re.findall(RECORDS[kind], text, re.M)
    asked = re.findall(ASKS[kind], text, re.M)
    values = dict(records)
    assert len(values) == len(records) >= 1, "keys repeat"
    assert asked and all(values[key] == value for key, value in asked)
    assert word_count(text) <= length


@given(seed=st.integers(0, 10**6), length=st.integers(40, 3000))
@settings(max_examples=60)
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
        assert [piece.role for piece in document[-3:]] == ["text", "drawn", "answer"]
        assert length - 2 * word_count("line king queen 123\n") < word_count(text_of(document)) <= length
        passkey = text_of(passkey_document(rng, length, word_count, depth=depth))
        before, after = passkey.split("The pass key is:", 1)
        filler_after = after.split("What is the pass key")[0]
        share = word_count(before) / (word_count(before) + word_count(filler_after))
        assert abs(share - depth) < 0.1


@pytest.mark.parametrize(
    ("length", "gap", "records"),
    [(1024, 0.0, 255), (2048, 0.0, len(WORDS)), (4096, 0.5, len(WORDS)), (2048, 0.5, 255), (256, 0.5, 31)],
)
def test_a_word_is_the_key_of_one_record_and_filler_takes_the_rest(length, gap, records):
    text = text_of(lines_document(np.random.default_rng(0), length, word_count, queries=1, gap=gap))
    keys = [key for key, _ in re.findall(RECORDS["lines"], text, re.M)]
    # A record and the question take four tokens each, the shortest sentence four.
    assert len(set(keys)) == len(keys) == records and set(keys) <= set(WORDS)
    filler = [line for line in text.splitlines(keepends=True) if line in FILLER]
    assert len(filler) + records + 1 == len(text.splitlines()) and text.splitlines()[-1].startswith("ask ")
    assert length - 12 < word_count(text) <= length and bool(filler) == ((length, gap) != (1024, 0.0))


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
@settings(max_examples=150)
def test_the_questions_asked_for_are_all_there_whatever_keys_cost(seed, queries, spare, gap):
    length = 40 * queries + 40 + spare  # bytes: words of very different cost
    document = lines_document(np.random.default_rng(seed), length, len, queries=queries, gap=gap)
    assert [piece.role for piece in document].count("answer") == queries
    assert len(text_of(document)) <= length


def test_filler_is_strewn_among_the_records():
    before = np.zeros(3)  # sentences before the first record, among the records, between the last and the questions
    for seed in range(40):
        lines = text_of(lines_document(np.random.default_rng(seed), 500, word_count, gap=0.5)).splitlines(keepends=True)
        kinds = ["filler" if line in FILLER else line.split()[0] for line in lines]
        said = [kind for kind in kinds if kind != "filler"]
        assert said == sorted(said, key="line ask".find) and "filler" not in kinds[kinds.index("ask") :]
        assert 60 < sum(word_count(line) for line in lines if line in FILLER) < 300
        first, last = kinds.index("line"), len(kinds) - 1 - kinds[::-1].index("line")
        where = [0 if i < first else 1 if i < last else 2 for i, kind in enumerate(kinds) if kind == "filler"]
        before += np.bincount(where, minlength=3)
    # Each sentence takes any of the places, of which there are some 30 to a document, alike.
    assert before[1] > 10 * before[0] > 0 and before[1] > 10 * before[2] > 0


def test_roles_say_what_can_be_predicted():
    """Keys and values where they first stand, and the key that is asked, are drawn; the rest follows from the text."""
    text = {"drawn": "", "answer": "", "text": ""}
    for piece in lines_document(np.random.default_rng(1), 60, word_count):
        text[piece.role] += piece.text
    assert re.fullmatch(r"( [a-z]+ \d\d)+( [a-z]+)+", text["drawn"])
    assert re.fullmatch(r"( \d\d\n)+", text["answer"]) and re.fullmatch(r"(line\n)+(ask)+", text["text"])
    passkey = passkey_document(np.random.default_rng(1), 80, word_count)
    assert re.fullmatch(r" \d\d", text_of([piece for piece in passkey if piece.role == "drawn"]))
    copied = synthetic_document(np.random.default_rng(1), "copy", 80, word_count)
    roles = [piece.role for piece in copied]
    once = roles.count("drawn")
    assert roles == ["drawn"] * once + ["text"] * (len(roles) - once) and 8 <= once < 45
    assert all(piece.text == copied[i % once].text for i, piece in enumerate(copied))


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
    assert len(set(WORDS)) == len(WORDS) >= 256 and all(re.fullmatch("[a-z]+", word) for word in WORDS)
    assert text_of(synthetic.record("king", "48") + synthetic.question("king", "48")) == "line king 48\nask king 48\n"
