"""RULER's thirteen tasks: needles in noise, in text and among needles; chains of variables; common and frequent words;
questions on documents among others.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv:2404.06654; prompts to
the letter of NVIDIA/RULER (scripts/data/synthetic), answer prefixes included, which a base model continues. Scored by
the published rules: the share of the answers that the output holds, and for questions whether it holds one. Questions
are SQuAD's (qa_1) and HotpotQA's (qa_2), in the files that `documents` names (dev-v2.0.json,
hotpot_dev_distractor_v1.json).

What is done otherwise, so that a score means something: every example has an order of its own (released, needles and
words of all examples are shuffled alike); keys are never repeated; prompt and answer fill `length`, where the release
leaves room for `new_tokens`; a prompt is filled to the sentence instead of to the next 25 of them, and to the word
where that leaves more than 2%; words are this project's own list (tasks/lines.py) instead of a package's, joined in
pairs where a list needs more. `compat=True` keeps the first and the third as released.
"""

import dataclasses
import json
import math
import random
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, haystack, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share
from giraffe_jax.evals.tasks.lines import ADJECTIVES, NOUNS, draw_keys

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NIAH = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the "
    "provided text? The special magic {kind} for {query} mentioned in the provided text are"
)
CHAIN = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: "
    "Find all variables that are assigned the value {query} in the text above. Answer: According to the chain(s) "
    "of variable assignment in the text above, {count} variables are assigned the value {query}, they are: "
)
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top "
    "10 words that appear most often in the list are:"
)
FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text? Answer: According to the coded "
    "text above, the three most frequently appeared words are:"
)


Shuffle = Callable[[list[Any]], None]


class Needles(NamedTuple):
    """Where needles hide, what their keys and values are, and how many keys, values of each and questions there are."""

    haystack: Literal["noise", "text", "needles"]
    key: Literal["words", "uuids"]
    value: Literal["numbers", "uuids"]
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES = {
    "niah_single_1": Needles("noise", "words", "numbers"),
    "niah_single_2": Needles("text", "words", "numbers"),
    "niah_single_3": Needles("text", "words", "uuids"),
    "niah_multikey_1": Needles("text", "words", "numbers", keys=4),
    "niah_multikey_2": Needles("needles", "words", "numbers"),
    "niah_multikey_3": Needles("needles", "uuids", "uuids"),
    "niah_multivalue": Needles("text", "words", "numbers", values=4),
    "niah_multiquery": Needles("text", "words", "numbers", keys=4, queries=4),
}
QUESTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me "
    "the answer and do not output any other words.\n\nQuestion: {query} Answer:"
)
NEW_TOKENS = dict.fromkeys(NEEDLES, 128) | dict(vt=30, cwe=120, fwe=50, qa_1=32, qa_2=32)
Kind = Literal[
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]  # fmt: skip
QA = dict(qa_1="SQuAD's dev-v2.0.json", qa_2="HotpotQA's hotpot_dev_distractor_v1.json")
# Of these the answer is one text, so that a model that knows it says it; of the others it may say it in any order.
DETERMINED = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "vt",
    "qa_1",
    "qa_2",
)


@dataclasses.dataclass(frozen=True)
class Ruler:
    """The keys of a RULER task; `n` examples for every length (and depth, where depths are set)."""

    VERSION: ClassVar[int] = 2  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    kind: Kind
    n: Count = 50
    depths: tuple[Share, ...] | None = None  # of the needle, in tasks of one; None: drawn
    documents: tuple[str, ...] = ()  # what "text" haystacks are made of: files, folders; of qa_1 and qa_2 the questions
    scoring: tuple[Scoring, ...] = ("generate",)
    new_tokens: Length | None = None  # generated at most; None: as published (128, 30, 120, 50, 32)
    hops: Count = 4  # of vt's chains
    chains: Count = 1  # of vt; one is asked for
    compat: bool = False  # orders and room as released, see above
    seed: Seed = 0
    name: Literal["ruler"] = "ruler"
    label: str | None = None

    def __post_init__(self):
        if self.new_tokens is None:
            object.__setattr__(self, "new_tokens", NEW_TOKENS[self.kind])
        if self.label is None:
            object.__setattr__(self, "label", f"ruler/{self.kind}")
        scoring.check_retrieval(self)
        needles = NEEDLES.get(self.kind)
        if "teacher" in self.scoring and self.kind not in DETERMINED:
            raise ConfigError(
                f"ruler.scoring: 'teacher' asks for one text, and the answers of {self.kind} have no order; it takes"
                " 'generate'."
            )
        if needles and needles.haystack == "text" and not self.documents:
            raise ConfigError(f"ruler.documents: {self.kind} hides its needles in text; name files or folders of it.")
        if self.kind in QA and len(self.documents) != 1:
            raise ConfigError(f"ruler.documents: {self.kind} takes one file, {QA[self.kind]}; got {self.documents}.")
        if self.depths is not None and (needles is None or needles.keys * needles.values > 1):
            raise ConfigError(f"ruler.depths: {self.kind} hides more than one thing; depths are drawn.")


Task = Ruler
METRICS = (metrics.TEACHER, metrics.MATCH_ALL, metrics.MATCH_PART, metrics.ANSWER_NLL)


def rows(task: Ruler, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch,
        judge=scoring.match_part if task.kind in QA else scoring.match_all,
    )  # fmt: skip


@scoring.remembered
def examples(task: Ruler, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples (per depth) in at most `length` tokens each, answer included.

    Each depends on (tokenizer, length, depth, its number, seed, documents) alone. ConfigError where none fits.
    """
    needles = NEEDLES.get(task.kind)
    text = haystack.read(task.documents, "ruler.documents") if needles and needles.haystack == "text" else None
    asked = questions(task) if task.kind in QA else None
    answer = (task.new_tokens or 0) if task.compat else 0
    fill = filling.Filler(task, tokenizer, length, probe=32, answer=answer)
    return [_one(task, fill, depth, i, text, asked) for depth in task.depths or (None,) for i in range(task.n)]


def _one(
    task: Ruler,
    fill: filling.Filler,
    depth: float | None,
    i: int,
    text: haystack.Haystack | None,
    asked: "Questions | None",
) -> Example:
    length = fill.length
    seed = f"ruler {task.kind} {task.seed} {length} {depth} {i}"
    order = f"ruler order {task.seed}" if task.compat else f"{seed} order"

    def make(size: int, end: haystack.End = haystack.NOTHING) -> filling.Made:
        rng, shuffle = random.Random(seed), random.Random(order).shuffle
        if task.kind == "vt":
            made = _chain(rng, size, task.hops, task.chains)
        elif task.kind == "cwe":
            made = _common(rng, shuffle, size, short=length < 4096)
        elif task.kind == "fwe":
            made = _frequent(rng, shuffle, size, words=max(length // 50, 8))
        elif asked is not None:
            made = _question(rng, shuffle, size, asked, i)
        else:
            made = _needles(NEEDLES[task.kind], rng, shuffle, size, depth, text, end)
        prompt, answers, said, where = made
        return filling.Made(prompt, said, tuple(answers), where)

    return fill(make)[1] if text is None else haystack.filled(fill, make)


# Each maker returns (prompt, what the output must hold, the answer as the prompt's examples would put it, depth of the
# first thing asked for), of a size in the units that fill it: sentences or words.


def _needles(
    task: Needles,
    rng: random.Random,
    shuffle: Shuffle,
    size: int,
    depth: float | None,
    text: haystack.Haystack | None,
    end: haystack.End,
):
    keys = _draw(rng, task.key, task.keys)
    values = [_draw(rng, task.value, task.values) for _ in keys]
    pairs = [(key, value) for key, mine in zip(keys, values, strict=True) for value in mine]
    asked = rng.sample(range(task.keys), task.queries)
    shuffle(pairs)
    hay_rng = random.Random(rng.random())  # what lies around does not change what is hidden
    if task.haystack == "needles":
        others = zip(_draw(hay_rng, task.key, size, but=keys), _draw(hay_rng, task.value, size), strict=True)
        hay = [NEEDLE.format(kind=task.value, key=k, value=v) for k, v in others]
    elif text is not None:
        hay = text.part(hay_rng.randrange(len(text.pieces)), size, end)
    else:
        hay = [NOISE] * size
    shares = [depth] if depth is not None else sorted(hay_rng.random() for _ in pairs)
    places = [round(share * len(hay)) for share in shares]
    hidden = [NEEDLE.format(kind=task.value, key=key, value=value) for key, value in pairs]
    if text is None:
        hay = [f"{piece}\n" for piece in hay]
    context = haystack.joined(hay, list(zip(places, hidden, strict=True)), " " if text else "\n")
    queries = [keys[i] for i in asked]
    answers = [value for i in asked for value in values[i]]
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    template, kind = NIAH, str(task.value)
    if len(answers) == 1:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        kind = kind[:-1]
    first = [key for key, _ in pairs].index(queries[0])
    where = places[first] / max(1, len(hay))
    return template.format(kind=kind, context=context, query=query), answers, " " + ", ".join(answers), where


def _chain(rng: random.Random, size: int, hops: int, chains: int):
    examples = []
    for letters, noise in ((3, 5), (5, size)):  # one solved, and the one that is asked
        names = _different(lambda k=letters: "".join(rng.choices(string.ascii_uppercase, k=k)), chains * (hops + 1))
        values = _different(lambda: str(rng.randint(10_000, 99_999)), chains)
        assigned, lines = [], [NOISE] * noise
        for c in range(chains):
            own = names[c * (hops + 1) : (c + 1) * (hops + 1)]
            made = [f"VAR {own[0]} = {values[c]}"] + [f"VAR {b} = VAR {a}" for a, b in zip(own, own[1:], strict=False)]
            assigned += zip(sorted(rng.random() for _ in made), made, strict=True)
        names, value, first = names[: hops + 1], values[0], assigned[0][0]
        for share, assignment in sorted(assigned, reverse=True):
            lines.insert(round(share * noise), assignment)
        text = CHAIN.format(context="\n".join(lines), query=value, count=hops + 1)
        examples.append((text, names, first))
    (solved, said, _), (asked, names, where) = examples
    return f"{solved} {' '.join(said)}\n\n\n\n{asked}", names, " ".join(names), where


def _common(rng: random.Random, shuffle: Shuffle, size: int, *, short: bool):
    def numbered(words):
        return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    def example(count, often, seldom):
        words = _words(rng, count)
        listed = words[:10] * often + words[10:] * seldom
        shuffle(listed)
        return COMMON.format(context=numbered(listed)), words[:10]

    solved, said = example(20, 3, 1) if short else example(40, 10, 3)
    asked, answers = example(10 + size, 6, 1) if short else example(10 + size, 30, 3)
    return f"{solved} {numbered(said)}\n{asked}", answers, " " + numbered(answers), 0.0


def _frequent(rng: random.Random, shuffle: Shuffle, size: int, *, words: int):
    coded = _different(lambda: "".join(rng.choices(string.ascii_lowercase, k=6)), words)
    coded[0] = "..."  # the most frequent is noise
    # Zipf's law with exponent 2, of ever more words, whose sum is pi^2 / 6.
    total = 256 + size  # so many that the three that are asked for differ in how often they come
    counts = [int(total * 6 / math.pi**2 / rank**2) for rank in range(1, words + 1)]
    text = [word for word, count in zip(coded, counts, strict=True) for _ in range(count)]
    shuffle(text)
    return FREQUENT.format(context=" ".join(text)), coded[1:4], " " + " ".join(coded[1:4]), 0.0


def _question(rng: random.Random, shuffle: Shuffle, size: int, asked: "Questions", i: int):
    query, answers, own, near = asked.cases[i % len(asked.cases)]
    # Documents of its own, then those of the same article, then any; of all that there are, so that more is never less.
    # Where they are too few, all of them once more, as often as it takes (as released).
    near, known = rng.sample(near, len(near)), {*own, *near}
    count = len(asked.documents)
    far = [d for d in rng.sample(range(count), min(count, max(4096, size))) if d not in known]
    chosen = [*own, *near, *far]
    chosen = (chosen * -(-(len(own) + size) // len(chosen)))[: len(own) + size]
    shuffle(chosen)
    context = "\n\n".join(f"Document {k}:\n{asked.documents[d]}" for k, d in enumerate(chosen, 1))
    where = min(chosen.index(d) for d in own) / max(1, len(chosen) - 1)
    return QUESTION.format(context=context, query=query), list(answers), f" {answers[0]}", where


class Questions(NamedTuple):
    """Documents, and cases on them: (question, allowed answers, its documents, others of the same article)."""

    documents: list[str]
    cases: list[tuple[str, tuple[str, ...], list[int], list[int]]]


def questions(task: Ruler) -> Questions:
    """Returns the questions of SQuAD's or HotpotQA's file; ConfigError where it is none."""
    path = Path(task.documents[0]).expanduser()
    if not path.is_file():
        raise ConfigError(f"ruler.documents: no such file: {path}.")
    try:
        data = json.loads(cases.text(path, "ruler.documents"))
        found = _squad(data["data"]) if task.kind == "qa_1" else _hotpot(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        said = f"{type(e).__name__}: {e}"
        raise ConfigError(f"ruler.documents: {path} is not {QA[task.kind]} ({said}).") from e
    if not found.cases:
        raise ConfigError(f"ruler.documents: {path} has no question that can be answered.")
    return found


def _squad(articles: Any) -> Questions:
    documents = sorted({p["context"] for article in articles for p in article["paragraphs"]})
    number, found = {text: i for i, text in enumerate(documents)}, []
    for article in articles:
        inside = [number[p["context"]] for p in article["paragraphs"]]
        for p in article["paragraphs"]:
            own = number[p["context"]]
            for qa in p["qas"]:
                if not qa["is_impossible"]:
                    answers = tuple(dict.fromkeys(str(a["text"]) for a in qa["answers"]))
                    found.append((str(qa["question"]), answers, [own], [d for d in inside if d != own]))
    return Questions(documents, found)


def _hotpot(rows: Any) -> Questions:
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
    documents = sorted({text for own in texts for text in own})
    number = {text: i for i, text in enumerate(documents)}
    return Questions(
        documents,
        [
            (str(row["question"]), (str(row["answer"]),), list(dict.fromkeys(number[text] for text in own)), [])
            for row, own in zip(rows, texts, strict=True)
        ],
    )


def _draw(rng: random.Random, kind: str, n: int, but: Sequence[str] = ()) -> list[str]:
    """Returns n different words ("adjective-noun"), numbers of seven digits or UUIDs."""
    if kind == "words":
        most = len(ADJECTIVES) * len(NOUNS)
        return [k for k in draw_keys(rng, min(n + len(but), most)) if k not in but][:n]
    if kind == "numbers":
        return _different(lambda: str(rng.randint(10**6, 10**7 - 1)), n)
    return _different(lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)), n)


def _different(draw: Callable[[], str], n: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[draw()] = None
    return list(found)


def _words(rng: random.Random, n: int) -> list[str]:
    """Returns n different words: of the list, then pairs of them."""
    single = list(dict.fromkeys(ADJECTIVES + NOUNS))
    rng.shuffle(single)
    return single[:n] + (draw_keys(rng, n - len(single)) if n > len(single) else [])
