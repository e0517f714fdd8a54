"""Synthetic retrieval documents: records of keys and values first, then questions that ask for the values.

A tiny language model learns retrieval soonest when one document asks many questions, when the text around an answer is
the same in the record and in the question, and when documents range from two or three records to a full window.
Everything here is a pure function of a `numpy.random.Generator`. Lengths are in tokens, as the `count` argument counts
them (see `piece_encoder`), and a document never exceeds the requested length.

The line format is shared with the evaluation task `lines` (style "compact"): `line king 48`, asked for by `ask king`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

LINE = ("line", "ask")  # the words that begin a record and a question
PAIR = ("set", "get")
PASSKEY = "The pass key is:"
PASSKEY_QUERY = "What is the pass key? The pass key is:"
ANSWER = " {value}"
ANSWER_END = "\n"
FILLER = (
    "The grass is green.\n",
    "The sky is blue.\n",
    "The sun is yellow.\n",
    "Here we go.\n",
    "There and back again.\n",
)
VALUE_DIGITS = 2
TYPICAL_VALUE = "48"  # stands for any value where only its number of tokens matters

# Common short words, so that even a small tokenizer can have each as one token with the space before it. There are
# more words than records in 2,048 tokens of which half is filler, so evaluation keys are one word at every length.
WORDS = tuple(
    """
    king man son day land data time men house lord people string hand pass path list class love module father number
    heart name world head soul night death life earth heaven sea fire gold sword bread wine stone tree horse ship
    road river wind rain snow star moon light dark city town wall gate door room bed table book page word letter
    note song voice tongue mouth eye ear face arm foot blood bone flesh body mind dream sleep war peace law truth
    faith hope mercy grace glory honour shame sin fear anger grief joy tear laugh queen prince duke lady knight
    priest judge servant master friend enemy brother sister mother child boy girl wife fool thief angel devil beast
    lion wolf bear lamb sheep dog cat bird dove crow fish snake goat bull cow tower field garden flower rose grass
    seed fruit corn oil salt honey milk water cup bowl knife bow spear shield crown ring robe cloak coat shoe hat
    bell drum horn pipe silver iron brass wood cloud storm thunder dust sand hill mount valley rock cave well pit
    lake bridge street market shop camp tent army host guard captain soldier north south east west spring summer
    winter year month week hour morning noon evening file line node code type event error value frame buffer cache
    stack queue token socket thread signal parser record index object order power force speed sound color acre age
    aid air ale aim altar anchor ant ape apple apron arch arrow art ash aunt axe babe back bag bait ball band bank
    """.split()
)

Kind = Literal["records", "lines", "passkey", "copy"]
KINDS: tuple[Kind, ...] = ("records", "lines", "passkey", "copy")


class Piece(NamedTuple):
    """A piece of text that is tokenised on its own, and its role, which selects its weight in the loss.

    `role`: "drawn" cannot be predicted (random keys and values where they first appear, and the key in a question),
    "answer" is a value that the document has given before, "text" is everything else.
    """

    text: str
    role: Literal["drawn", "answer", "text"]


Count = Callable[[str], int]


def record(key: str, value: str, words: tuple[str, str] = LINE) -> list[Piece]:
    """One record, `line king 48` and its line break."""
    return [Piece(words[0], "text"), Piece(f" {key}", "drawn"), Piece(f" {value}", "drawn"), Piece("\n", "text")]


def question(key: str, value: str, words: tuple[str, str] = LINE) -> list[Piece]:
    """One question with its answer, `ask king 48` and its line break."""
    return [
        Piece(words[1], "text"),
        Piece(f" {key}", "drawn"),
        Piece(ANSWER.format(value=value) + ANSWER_END, "answer"),
    ]


def draw_values(rng: np.random.Generator, n: int, digits: int = VALUE_DIGITS) -> list[str]:
    """`n` numbers of exactly `digits` digits, as text; they may repeat."""
    return [str(value) for value in rng.integers(10 ** (digits - 1), 10**digits, size=n)]


def text_of(document: Sequence[Piece]) -> str:
    """The document's text."""
    return "".join(piece.text for piece in document)


def lines_document(
    rng: np.random.Generator,
    length: int,
    count: Count,
    *,
    queries: int | None = None,
    depth: float | None = None,
    gap: float = 0.0,
    words: tuple[str, str] = LINE,
) -> list[Piece]:
    """Record lines, then questions about them, in at most `length` tokens (short of it by less than a record or
    sentence).

    Each word is the key of at most one record; once all words are used, filler takes the remaining tokens. Filler
    sentences are spread at random: each stands before a record or before the questions.

    queries: number of questions at the end; None draws it so that questions take 40% to 80% of the tokens.
    depth: in [0, 1]: every question asks for the record at this relative place (0 first, 1 last); None: for any record.
    gap: the fraction of the document, not counting the questions, that is filler.
    words: the words that begin a record and a question.
    Raises ValueError if not even one record and one question fit.
    """
    keys = [WORDS[i] for i in rng.permutation(len(WORDS))[:length]]
    values = draw_values(rng, len(keys))
    # Room for the questions is reserved first; records, at least one, fill the rest.
    typical = _cost(question(WORDS[0], TYPICAL_VALUE, words), count)
    num_queries = queries or max(1, int(rng.uniform(0.4, 0.8) * (1 - gap) * length / typical))
    wanted = int((length - num_queries * typical) * (1 - gap))
    records: list[list[Piece]] = []
    question_costs: list[int] = []
    used = dearest = 0
    for key, value in zip(keys, values, strict=True):
        pieces, cost = record(key, value, words), _cost(question(key, value, words), count)
        after, promised = used + _cost(pieces, count), (queries or 1) * max(dearest, cost)
        if after + promised > length or (after > wanted and records):
            break
        used, dearest = after, max(dearest, cost)
        records.append(pieces)
        question_costs.append(cost)
    n = len(question_costs)
    if n == 0:
        raise ValueError(f"lines_document: {length} tokens do not hold one record and {queries or 1} questions")
    if queries is None:
        targets = np.concatenate([rng.permutation(n) for _ in range(length // n + 1)])
    else:
        targets = rng.integers(n, size=queries)
    if depth is not None:
        targets = np.full_like(targets, round(depth * (n - 1)))
    spare = length - used - (queries or 1) * dearest
    if queries is None or n < len(keys):
        spare = min(spare, int(gap * (length - num_queries * typical)))
    filler = _filler(rng, spare, count)
    used += _cost(filler, count)
    tail: list[Piece] = []
    for target in targets:
        used += question_costs[target]
        if used > length:
            break
        tail += question(keys[target], values[target], words)
    return [*_strewn(rng, records, filler), *tail]


def _strewn(rng: np.random.Generator, records: Sequence[list[Piece]], filler: Sequence[Piece]) -> list[Piece]:
    """The records in order, with each filler sentence before one of them or after the last, drawn uniformly."""
    before = np.bincount(rng.integers(len(records) + 1, size=len(filler)), minlength=len(records) + 1)
    sentences = iter(filler)
    document: list[Piece] = []
    for count, pieces in zip(before, [*records, []], strict=True):
        document += [*itertools.islice(sentences, int(count)), *pieces]
    return document


def passkey_document(
    rng: np.random.Generator, length: int, count: Count, *, queries: int | None = 1, depth: float | None = None
) -> list[Piece]:
    """Filler sentences with one pass key among them, then the question, in at most `length` tokens.

    depth: where the pass key stands, 0 before all filler, 1 right before the (first) question; None draws it.
    queries: number of questions, with filler between them; None draws 1 to 6.
    Raises ValueError if pass key and questions do not fit.
    """
    value = draw_values(rng, 1)[0]
    key = [Piece(PASSKEY, "text"), Piece(f" {value}", "drawn"), Piece("\n", "text")]
    ask = [Piece(PASSKEY_QUERY, "text"), Piece(ANSWER.format(value=value) + ANSWER_END, "answer")]
    ask_cost = _cost(ask, count)
    room = length - _cost(key, count) - ask_cost
    num_queries = queries or 1 + min(int(rng.integers(6)), max(0, room // (2 * ask_cost)))
    room -= (num_queries - 1) * ask_cost
    if room < 0:
        need = _cost(key, count) + num_queries * ask_cost
        raise ValueError(f"passkey_document: length {length} is too short; {num_queries} questions need {need} tokens")
    filler = _filler(rng, room, count)
    where = float(rng.uniform()) if depth is None else depth
    # Several questions are spread over the filler, so that one document asks at several distances from the key.
    ends = (
        np.sort(rng.integers(1, len(filler) + 1, size=num_queries))
        if num_queries > 1 and filler
        else [len(filler)] * num_queries
    )
    ends[-1] = len(filler)
    at = round(where * int(ends[0]))
    document = [*filler[:at], *key, *filler[at : ends[0]], *ask]
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        document += [*filler[start:end], *ask]
    return document


def copy_document(rng: np.random.Generator, length: int, count: Count) -> list[Piece]:
    """A sequence of random words and numbers, repeated to the end, in at most `length` tokens.

    Each repeated token can be predicted by copying what followed the same word before (induction), which is how a model
    learns to look back at all (LOG.md). Repeats have role "text", not "answer": they are so many that they would
    outweigh the questions of other documents.
    """
    room = max(2, int(rng.uniform(0.1, 0.5) * length))
    items: list[str] = []
    while room > 0:
        number = rng.uniform() < 0.5
        item = ANSWER.format(value=draw_values(rng, 1)[0]) if number else " " + WORDS[int(rng.integers(len(WORDS)))]
        room -= count(item)
        items.append(item)
    document: list[Piece] = []
    while (length := length - count(item := items[len(document) % len(items)])) >= 0:
        document.append(Piece(item, "drawn" if len(document) < len(items) else "text"))
    return document


def synthetic_document(rng: np.random.Generator, kind: Kind, length: int, count: Count) -> list[Piece]:
    """A training document of `kind` in at most `length` tokens, with many questions. Half of the line and record
    documents have filler among their records, so that the distance to an answer is not tied to the number of records.
    """
    if kind == "passkey":
        return passkey_document(rng, length, count, queries=None)
    if kind == "copy":
        return copy_document(rng, length, count)
    gap = float(rng.uniform(0.1, 0.6)) if rng.uniform() < 0.5 and length >= 128 else 0.0
    return lines_document(rng, length, count, gap=gap, words=LINE if kind == "lines" else PAIR)


def shortest_length(kind: Kind, count: Count) -> int:
    """The tokens that a document of `kind` needs at least, whatever its keys: those of one record and one question."""
    value = "0" * VALUE_DIGITS
    if kind == "copy":
        return 2 * max(count(f" {word}") for word in (*WORDS, value))
    if kind == "passkey":
        return sum(count(text) for text in (PASSKEY, f" {value}", "\n", PASSKEY_QUERY, f" {value}{ANSWER_END}"))
    words = LINE if kind == "lines" else PAIR
    return max(_cost(record(key, value, words) + question(key, value, words), count) for key in WORDS)


def granularity(count: Count) -> int:
    """The most tokens by which a document with one question may fall short of its length: a filler sentence and a
    record."""
    records = (_cost(record(key, "0" * VALUE_DIGITS), count) for key in WORDS)
    return max(count(sentence) for sentence in FILLER) + max(records)


def piece_encoder(tokenizer) -> Callable[[str], tuple[int, ...]]:
    """Returns a cached encoder of pieces: text of a piece -> token ids. The length of its result is the `count` of this
    module.

    Raises ValueError if encoding piece by piece differs from encoding the whole text, as with tokenizers that put a
    space before every text: lengths and the places of answers would be wrong.
    """
    encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer.encode(text)))

    def count(text: str) -> int:
        return len(encode(text))

    for kind in KINDS:
        document = synthetic_document(np.random.default_rng(0), kind, 10 * shortest_length(kind, count), count)
        joined = [token for piece in document for token in encode(piece.text)]
        if joined != list(tokenizer.encode(text_of(document))):
            raise ValueError(
                f"synthetic documents ({kind}): this tokenizer joins text across a word or a line break, so the tokens "
                "of an answer cannot be told apart; use a tokenizer that splits there and adds no space in front"
            )
    return encode


def _cost(pieces: Sequence[Piece], count: Count) -> int:
    return sum(count(piece.text) for piece in pieces)


def _filler(rng: np.random.Generator, tokens: int, count: Count) -> list[Piece]:
    """Filler sentences in order, beginning with a random one, as many as fit."""
    costs = [count(sentence) for sentence in FILLER]
    at = int(rng.integers(len(FILLER)))
    pieces: list[Piece] = []
    while tokens >= costs[at % len(FILLER)]:
        tokens -= costs[at % len(FILLER)]
        pieces.append(Piece(FILLER[at % len(FILLER)], "text"))
        at += 1
    return pieces
