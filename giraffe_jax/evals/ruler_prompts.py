"""The prompts of RULER's tasks (tasks/ruler.py), with the exact wording of NVIDIA/RULER, scripts/data/synthetic.

Each function returns (prompt, texts that the output must contain, answer in the form that the prompt asks for, depth of
the first thing asked for). `size` counts the units that fill the prompt: sentences, words or documents.
"""

import math
import random
import string
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from giraffe_jax.evals import haystack
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
QUESTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me "
    "the answer and do not output any other words.\n\nQuestion: {query} Answer:"
)

Shuffle = Callable[[list[Any]], None]


class Needles(NamedTuple):
    """A needle task: kinds of haystack, keys and values; numbers of keys, of values per key and of queried keys."""

    haystack: Literal["noise", "text", "needles"]
    key: Literal["words", "uuids"]
    value: Literal["numbers", "uuids"]
    keys: int = 1
    values: int = 1
    queries: int = 1


class Questions(NamedTuple):
    """Documents and cases: (question, allowed answers, indices of its documents, indices of others of the article)."""

    documents: list[str]
    cases: list[tuple[str, tuple[str, ...], list[int], list[int]]]


def needles(
    task: Needles,
    rng: random.Random,
    shuffle: Shuffle,
    size: int,
    depth: float | None,
    text: haystack.Haystack | None,
    end: haystack.End,
):
    """Needles between `size` sentences, at `depth` or, if None, at random places."""
    keys = _draw(rng, task.key, task.keys)
    values = [_draw(rng, task.value, task.values) for _ in keys]
    pairs = [(key, value) for key, key_values in zip(keys, values, strict=True) for value in key_values]
    queried = rng.sample(range(task.keys), task.queries)
    shuffle(pairs)
    hay_rng = random.Random(rng.random())  # a stream of its own: the haystack does not change the needles
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
    queries = [keys[i] for i in queried]
    answers = [value for i in queried for value in values[i]]
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    template, kind = NIAH, str(task.value)
    if len(answers) == 1:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        kind = kind[:-1]
    first = [key for key, _ in pairs].index(queries[0])
    where = places[first] / max(1, len(hay))
    return template.format(kind=kind, context=context, query=query), answers, " " + ", ".join(answers), where


def chain(rng: random.Random, size: int, hops: int, chains: int):
    """Chains of `hops` variable assignments between `size` sentences, after a short solved example."""
    examples = []
    for letters, noise in ((3, 5), (5, size)):  # the solved example, then the question
        names = _different(lambda k=letters: "".join(rng.choices(string.ascii_uppercase, k=k)), chains * (hops + 1))
        values = _different(lambda: str(rng.randint(10_000, 99_999)), chains)
        assigned, lines = [], [NOISE] * noise
        for c in range(chains):
            variables = names[c * (hops + 1) : (c + 1) * (hops + 1)]
            assignments = [f"VAR {variables[0]} = {values[c]}"] + [
                f"VAR {b} = VAR {a}" for a, b in zip(variables, variables[1:], strict=False)
            ]
            assigned += zip(sorted(rng.random() for _ in assignments), assignments, strict=True)
        names, value, first = names[: hops + 1], values[0], assigned[0][0]
        for share, assignment in sorted(assigned, reverse=True):
            lines.insert(round(share * noise), assignment)
        text = CHAIN.format(context="\n".join(lines), query=value, count=hops + 1)
        examples.append((text, names, first))
    (solved, solution, _), (unsolved, names, where) = examples
    return f"{solved} {' '.join(solution)}\n\n\n\n{unsolved}", names, " ".join(names), where


def common(rng: random.Random, shuffle: Shuffle, size: int, *, short: bool):
    """Ten common words among `size` rare ones; in `short` prompts all are repeated fewer times."""

    def numbered(words):
        return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    def example(count, often, seldom):
        words = _words(rng, count)
        listed = words[:10] * often + words[10:] * seldom
        shuffle(listed)
        return COMMON.format(context=numbered(listed)), words[:10]

    solved, solution = example(20, 3, 1) if short else example(40, 10, 3)
    unsolved, answers = example(10 + size, 6, 1) if short else example(10 + size, 30, 3)
    return f"{solved} {numbered(solution)}\n{unsolved}", answers, " " + numbered(answers), 0.0


def frequent(rng: random.Random, shuffle: Shuffle, size: int, *, words: int):
    """A text of 256 + size words, with `words` different ones distributed by Zipf's law."""
    coded = _different(lambda: "".join(rng.choices(string.ascii_lowercase, k=6)), words)
    coded[0] = "..."  # the most frequent is noise
    # Zipf's law with exponent 2; normalised by the infinite sum, pi^2 / 6.
    total = 256 + size  # enough that the three most frequent words have different counts
    counts = [int(total * 6 / math.pi**2 / rank**2) for rank in range(1, words + 1)]
    text = [word for word, count in zip(coded, counts, strict=True) for _ in range(count)]
    shuffle(text)
    return FREQUENT.format(context=" ".join(text)), coded[1:4], " " + " ".join(coded[1:4]), 0.0


def question(rng: random.Random, shuffle: Shuffle, size: int, questions: Questions, i: int):
    """The i-th question, on its own documents among `size` others."""
    query, answers, gold, near = questions.cases[i % len(questions.cases)]
    # Its own documents, then those of the same article, then any, drawn so that a larger size only adds documents.
    # If there are too few, all are repeated as often as needed (as released).
    near, known = rng.sample(near, len(near)), {*gold, *near}
    count = len(questions.documents)
    far = [d for d in rng.sample(range(count), min(count, max(4096, size))) if d not in known]
    chosen = [*gold, *near, *far]
    chosen = (chosen * -(-(len(gold) + size) // len(chosen)))[: len(gold) + size]
    shuffle(chosen)
    context = "\n\n".join(f"Document {k}:\n{questions.documents[d]}" for k, d in enumerate(chosen, 1))
    where = min(chosen.index(d) for d in gold) / max(1, len(chosen) - 1)
    return QUESTION.format(context=context, query=query), list(answers), f" {answers[0]}", where


def _draw(rng: random.Random, kind: str, n: int, but: Sequence[str] = ()) -> list[str]:
    """Returns n different words ("adjective-noun"), numbers of seven digits or UUIDs."""
    if kind == "words":
        most = len(ADJECTIVES) * len(NOUNS)
        return [k for k in draw_keys(rng, min(n + len(but), most)) if k not in but][:n]
    if kind == "numbers":
        return _different(lambda: str(rng.randint(10**6, 10**7 - 1)), n)
    return _different(lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)), n)


def _different(draw: Callable[[], str], n: int) -> list[str]:
    distinct: dict[str, None] = {}
    while len(distinct) < n:
        distinct[draw()] = None
    return list(distinct)


def _words(rng: random.Random, n: int) -> list[str]:
    """Returns n different words: first single ones of the list, then pairs of them."""
    single = list(dict.fromkeys(ADJECTIVES + NOUNS))
    rng.shuffle(single)
    return single[:n] + (draw_keys(rng, n - len(single)) if n > len(single) else [])
