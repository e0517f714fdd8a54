"""RULER's synthetic tasks: needles in noise, in text and among needles; chains of variables; common and frequent words.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv:2404.06654; prompts to
the letter of NVIDIA/RULER (scripts/data/synthetic), answer prefixes included, which a base model continues. Scored by
the published rule: the share of the answers that the output holds. Not built: its two tasks of questions on SQuAD and
HotpotQA.

What is done otherwise, so that a score means something: every example has an order of its own (released, needles and
words of all examples are shuffled alike); keys are never repeated; a prompt is filled to the sentence instead of to the
next 25 of them; prompt and answer fill `length`, where the release leaves room for `new_tokens`; words are this
project's own list (evals/lines.py) instead of a package's, joined in pairs where a list needs more.
"""

import dataclasses
import math
import random
import re
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import metrics, perplexity, scoring
from giraffe_jax.evals.lines import ADJECTIVES, NOUNS, draw_keys
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

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
NEW_TOKENS = dict.fromkeys(NEEDLES, 128) | dict(vt=30, cwe=120, fwe=50)
Kind = Literal[
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
]  # fmt: skip
# Of these the answer is one text, so that a model that knows it says it; of the others it may say it in any order.
DETERMINED = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "vt",
)


@dataclasses.dataclass(frozen=True)
class Ruler:
    """The keys of a RULER task; `n` examples for every length (and depth, where depths are set)."""

    lengths: tuple[Length, ...]
    kind: Kind
    n: Count = 50
    depths: tuple[Share, ...] | None = None  # of the needle, in tasks of one; None: drawn
    documents: tuple[str, ...] = ()  # text files or folders that "text" haystacks are made of
    scoring: tuple[Scoring, ...] = ("generate",)
    new_tokens: Length | None = None  # generated at most; None: as published (128, 30, 120, 50)
    hops: Count = 4  # of vt's chain
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
        if self.depths is not None and (needles is None or needles.keys * needles.values > 1):
            raise ConfigError(f"ruler.depths: {self.kind} hides more than one thing; depths are drawn.")


Task = Ruler
METRICS = (metrics.TEACHER, metrics.MATCH_ALL, metrics.MATCH_PART, metrics.ANSWER_NLL)


def rows(task: Ruler, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch,
        judge=scoring.match_all,
    )  # fmt: skip


def examples(task: Ruler, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples (per depth) in at most `length` tokens each, answer included.

    Each depends on (tokenizer, length, depth, its number, seed, documents) alone. ConfigError where none fits.
    """
    sentences = (
        _sentences(task) if NEEDLES.get(task.kind, Needles("noise", "words", "numbers")).haystack == "text" else []
    )
    return [
        _one(task, tokenizer, length, depth, i, sentences) for depth in task.depths or (None,) for i in range(task.n)
    ]


def _one(task: Ruler, tokenizer: Any, length: int, depth: float | None, i: int, sentences: Sequence[str]) -> Example:
    seed, bos = f"ruler {task.kind} {task.seed} {length} {depth} {i}", tuple(tokenizer.prefix)

    def make(rng: random.Random, size: int) -> tuple[str, list[str], str, float]:
        if task.kind == "vt":
            return _chain(rng, size, task.hops)
        if task.kind == "cwe":
            return _common(rng, size, short=length < 4096)
        if task.kind == "fwe":
            return _frequent(rng, size, words=max(length // 50, 8))
        return _needles(NEEDLES[task.kind], rng, size, depth, sentences)

    def build(size: int) -> Example:
        text, answers, said, where = make(random.Random(seed), size)
        before, answer = scoring.split(tokenizer, text, said)
        return Example(bos + before, answer, tuple(answers), where)

    _, example = scoring.largest(
        build,
        cost=lambda e: len(e.prompt) + len(e.answer),
        budget=length,
        probe=32,
        what=f"ruler ({task.kind}) at length {length}",
    )
    return example


# Each maker returns (prompt, what the output must hold, the answer as the prompt's examples would put it, depth of the
# first thing asked for), of a size in the units that fill it: sentences or words.


def _needles(task: Needles, rng: random.Random, size: int, depth: float | None, text: Sequence[str]):
    keys = _draw(rng, task.key, task.keys)
    values = [_draw(rng, task.value, task.values) for _ in keys]
    pairs = [(key, value) for key, mine in zip(keys, values, strict=True) for value in mine]
    asked = rng.sample(range(task.keys), task.queries)
    rng.shuffle(pairs)
    hay_rng = random.Random(rng.random())  # what lies around does not change what is hidden
    if task.haystack == "needles":
        others = zip(_draw(hay_rng, task.key, size, but=keys), _draw(hay_rng, task.value, size), strict=True)
        hay = [NEEDLE.format(kind=task.value, key=k, value=v) for k, v in others]
    elif task.haystack == "text":
        start = hay_rng.randrange(len(text))
        hay = [text[(start + i) % len(text)] for i in range(size)]
    else:
        hay = [NOISE] * size
    shares = [depth] if depth is not None else sorted(hay_rng.random() for _ in pairs)
    places = [round(share * size) for share in shares]
    for place, (key, value) in reversed(list(zip(places, pairs, strict=True))):
        hay.insert(place, NEEDLE.format(kind=task.value, key=key, value=value))
    queries = [keys[i] for i in asked]
    answers = [value for i in asked for value in values[i]]
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    template, kind = NIAH, str(task.value)
    if len(answers) == 1:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        kind = kind[:-1]
    context = (" " if task.haystack == "text" else "\n").join(hay)
    first = [key for key, _ in pairs].index(queries[0])
    where = places[first] / max(1, size)
    return template.format(kind=kind, context=context, query=query), answers, " " + ", ".join(answers), where


def _chain(rng: random.Random, size: int, hops: int):
    examples = []
    for letters, noise in ((3, 5), (5, size)):  # one solved, and the one that is asked
        names = _different(lambda k=letters: "".join(rng.choices(string.ascii_uppercase, k=k)), hops + 1)
        value = str(rng.randint(10_000, 99_999))
        chain = [f"VAR {names[0]} = {value}"] + [f"VAR {b} = VAR {a}" for a, b in zip(names, names[1:], strict=False)]
        places = sorted(rng.random() for _ in chain)
        lines = [NOISE] * noise
        for share, assignment in reversed(list(zip(places, chain, strict=True))):
            lines.insert(round(share * noise), assignment)
        text = CHAIN.format(context="\n".join(lines), query=value, count=hops + 1)
        examples.append((text, names, places[0]))
    (solved, said, _), (asked, names, where) = examples
    return f"{solved} {' '.join(said)}\n\n\n\n{asked}", names, " ".join(names), where


def _common(rng: random.Random, size: int, *, short: bool):
    def numbered(words):
        return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    def example(count, often, seldom):
        words = _words(rng, count)
        listed = words[:10] * often + words[10:] * seldom
        rng.shuffle(listed)
        return COMMON.format(context=numbered(listed)), words[:10]

    solved, said = example(20, 3, 1) if short else example(40, 10, 3)
    asked, answers = example(10 + size, 6, 1) if short else example(10 + size, 30, 3)
    return f"{solved} {numbered(said)}\n{asked}", answers, " " + numbered(answers), 0.0


def _frequent(rng: random.Random, size: int, *, words: int):
    coded = _different(lambda: "".join(rng.choices(string.ascii_lowercase, k=6)), words)
    coded[0] = "..."  # the most frequent is noise
    # Zipf's law with exponent 2, of ever more words, whose sum is pi^2 / 6.
    total = 256 + size  # so many that the three that are asked for differ in how often they come
    counts = [int(total * 6 / math.pi**2 / rank**2) for rank in range(1, words + 1)]
    text = [word for word, count in zip(coded, counts, strict=True) for _ in range(count)]
    rng.shuffle(text)
    return FREQUENT.format(context=" ".join(text)), coded[1:4], " " + " ".join(coded[1:4]), 0.0


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


def _sentences(task: Ruler) -> list[str]:
    """Returns the sentences of the documents, white space made one space."""
    found: list[str] = []
    for _, path in perplexity.files(task.documents):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace").split())
        found += [s for s in re.split(r"(?<=[.!?])\s+(?=[\"'(A-Z0-9])", text) if s]
    if not found:
        raise ConfigError(f"ruler.documents: no text in {', '.join(task.documents)}.")
    return found
