"""Synthetic documents that teach, and ask for, retrieval: records first, then queries whose answers are their values.

A tiny language model learns to look things up soonest when one document asks many questions, when the text around an
answer is the same in the record and in the query, and when documents grow from two or three records to a full window.
Everything here is a pure function of a `numpy.random.Generator`; lengths are in tokens, counted by the `count` function
that is handed in (see `piece_encoder`), and a document never exceeds the length it was asked for.

The line format is shared with the evaluation task `lines` (style "compact"): `line king 48`, asked for by `ask king`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

LINE_RECORD = "line {key} {value}\n"
LINE_QUERY = "ask {key}"
PAIR_RECORD = "set {key} {value}\n"
PAIR_QUERY = "get {key}"
PASSKEY_RECORD = "The pass key is: {value}\n"
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
TYPICAL_VALUE = "48"  # what is counted where the length of a value is asked for

# Common short words, frequent in the corpora a small tokenizer is trained on, so that each is one token after a space.
WORDS = tuple(
    """
    king man son day land data time men house lord people string hand pass path list class love module father number
    heart name world head soul night death life earth heaven sea fire gold sword bread wine stone tree horse ship road
    river wind rain snow star moon light dark city town wall gate door room bed table book page word letter note song
    voice tongue mouth eye ear face arm foot blood bone flesh body mind dream sleep war peace law truth faith hope
    mercy grace glory honour shame sin fear anger grief joy tear laugh queen prince duke lady knight priest judge
    servant master friend enemy brother sister mother child boy girl wife fool thief angel devil beast lion wolf bear
    lamb sheep dog cat bird dove crow fish snake goat bull cow tower field garden flower rose grass seed fruit corn
    oil salt honey milk water cup bowl knife bow spear shield crown ring robe cloak coat shoe hat bell drum horn pipe
    silver iron brass wood cloud storm thunder dust sand hill mount valley rock cave well pit lake bridge street
    market shop camp tent army host guard captain soldier north south east west spring summer winter year month week
    hour morning noon evening file line node code type event error value field frame buffer cache stack queue
    token socket thread signal parser record index object order power force speed sound color
    """.split()
)
WORDS = tuple(dict.fromkeys(WORDS))

Kind = Literal["records", "lines", "passkey", "copy"]
KINDS: tuple[Kind, ...] = ("records", "lines", "passkey", "copy")


class Piece(NamedTuple):
    """A stretch of text that is tokenised on its own, and what it is for.

    `role`: "record" cannot be predicted (random keys and values), "query" is the fixed text and key that ask, "answer"
    is a value that the document has already given, "filler" is everything else.
    """

    text: str
    role: Literal["record", "query", "answer", "filler"]


Count = Callable[[str], int]


def line_record(key: str, value: str) -> str:
    """One record line of the compact format, with its line break."""
    return LINE_RECORD.format(key=key, value=value)


def line_query(key: str) -> str:
    """The compact question for `key`; a space and the value follow."""
    return LINE_QUERY.format(key=key)


def draw_keys(rng: np.random.Generator, n: int) -> list[str]:
    """`n` different words, at most as many as there are."""
    return [WORDS[i] for i in rng.permutation(len(WORDS))[:n]]


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
    record: str = LINE_RECORD,
    query: str = LINE_QUERY,
) -> list[Piece]:
    """Record lines, then queries of them, in at most `length` tokens (less than one record or sentence short of it).

    A word is the key of one record at most: where a document is longer than records of all words and the questions
    asked of it, filler follows the records.

    queries: how many questions at the end; None draws how much of the document asks (40% to 80% of its tokens).
    depth: with a number in [0, 1], every question is for the record at that place (0 the first, 1 the last).
    gap: the fraction of the document that is filler between records and questions.
    Raises ValueError when not even one record and one query fit.
    """
    cost = count(query.format(key=WORDS[0])) + count(ANSWER.format(value=TYPICAL_VALUE) + ANSWER_END)
    asked = queries or max(1, int(rng.uniform(0.4, 0.8) * (1 - gap) * length / cost))
    room = length - asked * cost
    keys, values = _records_that_fit(rng, int(room * (1 - gap)), count, record)
    records = [Piece(record.format(key=k, value=v), "record") for k, v in zip(keys, values, strict=True)]
    used = sum(count(piece.text) for piece in records)
    # Keys cost what they cost: where the estimate was too low, records make room for the questions promised.
    costs = [_query_cost(count, query, key, value) for key, value in zip(keys, values, strict=True)]
    promised = (queries or 1) * max(costs, default=0)
    while records and used + promised > length:
        used -= count(records.pop().text)
    n = len(records)
    if n == 0 and queries is None:
        return lines_document(rng, length, count, queries=1, depth=depth, record=record, query=query)
    if n == 0:
        raise ValueError(f"lines_document: {length} tokens do not hold one record and {asked} queries with gap {gap}")
    if queries is None:
        targets = np.concatenate([rng.permutation(n) for _ in range(length // n + 1)])
    else:
        targets = rng.integers(n, size=queries)
    if depth is not None:
        targets = np.full_like(targets, round(depth * (n - 1)))
    spare = length - used - promised
    if queries is None or n < len(WORDS):
        spare = min(int(gap * room), spare)
    between = _filler(rng, spare, count) if spare > 0 else []
    used += sum(count(piece.text) for piece in between)
    tail: list[Piece] = []
    for target in targets:
        asking = Piece(query.format(key=keys[target]), "query")
        answer = Piece(ANSWER.format(value=values[target]) + ANSWER_END, "answer")
        used += _query_cost(count, query, keys[target], values[target])
        if used > length:
            break
        tail += [asking, answer]
    return [*records, *between, *tail]


def records_document(
    rng: np.random.Generator,
    length: int,
    count: Count,
    *,
    queries: int | None = None,
    depth: float | None = None,
    gap: float = 0.0,
) -> list[Piece]:
    """As `lines_document`, in other words: `set king 48` asked for by `get king`."""
    return lines_document(
        rng, length, count, queries=queries, depth=depth, gap=gap, record=PAIR_RECORD, query=PAIR_QUERY
    )


def passkey_document(
    rng: np.random.Generator, length: int, count: Count, *, queries: int | None = 1, depth: float | None = None
) -> list[Piece]:
    """Filler sentences with one pass key among them, then the question, in at most `length` tokens.

    depth: where the pass key stands, 0 before all filler, 1 right before the (first) question; None draws it.
    queries: how often it is asked, with filler between the questions; None draws 1 to 6.
    Raises ValueError when pass key and questions do not fit.
    """
    value = draw_values(rng, 1)[0]
    key = Piece(PASSKEY_RECORD.format(value=value), "record")
    ask = [Piece(PASSKEY_QUERY, "query"), Piece(ANSWER.format(value=value) + ANSWER_END, "answer")]
    ask_cost = sum(count(piece.text) for piece in ask)
    room = length - count(key.text) - ask_cost
    asked = queries or 1 + min(int(rng.integers(6)), max(0, room // (2 * ask_cost)))
    room -= (asked - 1) * ask_cost
    if room < 0:
        need = count(key.text) + asked * ask_cost
        raise ValueError(f"passkey_document: length {length} is too short; {asked} questions need {need} tokens")
    filler = _filler(rng, room, count)
    where = float(rng.uniform()) if depth is None else depth
    # All questions but the first cut into the rest of the filler, so that one document asks at several distances.
    ends = np.sort(rng.integers(1, len(filler) + 1, size=asked)) if asked > 1 and filler else [len(filler)] * asked
    ends[-1] = len(filler)
    at = round(where * int(ends[0]))
    document = [*filler[:at], key, *filler[at : ends[0]], *ask]
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        document += [*filler[start:end], *ask]
    return document


def copy_document(rng: np.random.Generator, length: int, count: Count) -> list[Piece]:
    """Random words and numbers, then the same again and again, in at most `length` tokens.

    It asks for nothing but copying what followed the same word before, in every token. Those tokens are filler, not
    answers: they are many, and would drown the questions of other documents.
    """
    once = max(2, int(rng.uniform(0.1, 0.5) * length))
    items: list[str] = []
    while once > 0:
        number = rng.uniform() < 0.5
        item = ANSWER.format(value=draw_values(rng, 1)[0]) if number else " " + WORDS[int(rng.integers(len(WORDS)))]
        once -= count(item)
        items.append(item)
    document: list[Piece] = []
    while (length := length - count(item := items[len(document) % len(items)])) >= 0:
        document.append(Piece(item, "record" if len(document) < len(items) else "filler"))
    return document


def synthetic_document(rng: np.random.Generator, kind: Kind, length: int, count: Count) -> list[Piece]:
    """A training document of `kind` in at most `length` tokens, with many queries; a third of the line and record
    documents are part filler, so that the distance to an answer is not tied to the number of records.
    """
    if kind == "passkey":
        return passkey_document(rng, length, count, queries=None)
    if kind == "copy":
        return copy_document(rng, length, count)
    gap = float(rng.uniform(0.1, 0.6)) if rng.uniform() < 1 / 3 and length >= 128 else 0.0
    make = lines_document if kind == "lines" else records_document
    return make(rng, length, count, gap=gap)


def shortest_length(kind: Kind, count: Count) -> int:
    """How many tokens a document of `kind` needs at least, whatever its keys: one record and one question."""
    if kind == "passkey":
        value = "0" * VALUE_DIGITS
        answer = ANSWER.format(value=value) + ANSWER_END
        return sum(count(text) for text in (PASSKEY_RECORD.format(value=value), PASSKEY_QUERY, answer))
    record, query = (LINE_RECORD, LINE_QUERY) if kind == "lines" else (PAIR_RECORD, PAIR_QUERY)
    value = "0" * VALUE_DIGITS
    records = max(count(record.format(key=key, value=value)) for key in WORDS)
    return records + max(_query_cost(count, query, key, value) for key in WORDS)


def piece_encoder(tokenizer) -> Callable[[str], tuple[int, ...]]:
    """A remembering encoder of pieces: piece text -> token ids. Its lengths are the `count` of this module.

    Raises ValueError where encoding piece by piece is not what the tokenizer makes of the whole text (tokenizers that
    put a space before every text do that), since lengths and answers would then be off.
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


def _records_that_fit(rng: np.random.Generator, room: int, count: Count, record: str) -> tuple[list[str], list[str]]:
    """Keys and values of as many records as `room` tokens hold."""
    estimate = room // count(record.format(key=WORDS[0], value=TYPICAL_VALUE))
    keys = draw_keys(rng, 2 * estimate + 2)
    values = draw_values(rng, len(keys))
    for n, (key, value) in enumerate(zip(keys, values, strict=True)):
        room -= count(record.format(key=key, value=value))
        if room < 0:
            return keys[:n], values[:n]
    return keys, values


def _query_cost(count: Count, query: str, key: str, value: str) -> int:
    return count(query.format(key=key)) + count(ANSWER.format(value=value) + ANSWER_END)


def _filler(rng: np.random.Generator, tokens: int, count: Count) -> list[Piece]:
    """Filler sentences in turn from a random one, as many as fit."""
    costs = [count(sentence) for sentence in FILLER]
    at = int(rng.integers(len(FILLER)))
    pieces: list[Piece] = []
    while tokens >= costs[at % len(FILLER)]:
        tokens -= costs[at % len(FILLER)]
        pieces.append(Piece(FILLER[at % len(FILLER)], "filler"))
        at += 1
    return pieces
