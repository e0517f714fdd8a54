"""Needle in a haystack: retrieve one sentence hidden in a book, by length and depth, optionally with distractors.

The prompt is EasyContext's (jzhang38/EasyContext, eval_needle.py), after Kamradt's test: a city's number in a book of
real text, and other cities' numbers as distractors. Scored teacher-forced, as there, or generated. Differences: every
example has its own text and numbers, always of seven digits; the needle is put between two sentences, which are found
in the text and not by the ids of one tokenizer's periods; prompt and answer fill `length`. For several keys, values or
questions at once see `ruler` (niah_multikey, niah_multivalue, niah_multiquery).
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import filling, haystack, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

PREFIX = "This is a very long story book: <book>"
NEEDLE = "\nThe special magic {city} number is: {value}.\n"
QUESTION = (
    "</book>.\n Based on the content of the book, Question: What is the special magic Singapore number? Answer: The "
    "special magic Singapore number is:"
)
CITIES = ("New York", "London", "Paris", "Tokyo", "Beijing", "Berlin")


@dataclasses.dataclass(frozen=True)
class Needle:
    """The keys of a needle task; `n` examples for every length and depth."""

    VERSION: ClassVar[int] = 2  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    documents: tuple[str, ...]  # Text files or folders that the haystack is made of.
    depths: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # Depth of the needle: 0 before all text, 1 after it.
    n: Count = 10
    distractors: int = 0  # Number of further needles, of other cities, that are not asked for.
    scoring: tuple[Scoring, ...] = ("teacher",)
    new_tokens: Length = 16  # Most tokens to generate.
    seed: Seed = 0
    name: Literal["needle"] = "needle"
    label: str | None = None

    def __post_init__(self):
        scoring.check_retrieval(self)
        if not 0 <= self.distractors <= len(CITIES):
            raise ConfigError(f"needle.distractors: expected 0 to {len(CITIES)}, got {self.distractors}.")


Task = Needle
METRICS = (metrics.TEACHER, metrics.NUMBER, metrics.LAST_NUMBER, metrics.ANSWER_NLL)


def rows(task: Needle, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example, depth by depth; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch
    )


@scoring.remembered
def examples(task: Needle, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples per depth in at most `length` tokens each, answer included.

    Each depends only on (tokenizer, length, depth, its index, seed, documents). ConfigError if none fits.
    """
    text = haystack.read(task.documents, "needle.documents")
    fill = filling.Filler(task, tokenizer, length)
    return [_one(task, fill, depth, i, text) for depth in task.depths for i in range(task.n)]


def _one(task: Needle, fill: filling.Filler, depth: float, i: int, text: haystack.Haystack) -> Example:
    rng = random.Random(f"needle {task.seed} {fill.length} {depth:.6f} {i}")
    value, *others = rng.sample(range(10**6, 10**7), 1 + task.distractors)
    start, places = rng.randrange(len(text.pieces)), [rng.random() for _ in others]
    wrong = list(
        zip(places, (NEEDLE.format(city=c, value=v) for c, v in zip(CITIES, others, strict=False)), strict=True)
    )

    hidden = [*wrong, (depth, NEEDLE.format(city="Singapore", value=value))]

    def make(size: int, end: haystack.End = haystack.NOTHING) -> filling.Made:
        book = text.part(start, size, end)
        book = haystack.joined(book, [(round(share * len(book)), needle) for share, needle in sorted(hidden)])
        prompt = PREFIX + book.replace(" \n", "\n").replace("\n ", "\n") + QUESTION
        return filling.Made(prompt, f" {value}", value, depth)

    return haystack.filled(fill, make)
