"""Key-value retrieval: a JSON object of random UUIDs, and the value of one of its keys is asked for.

Liu et al., "Lost in the Middle", arXiv:2307.03172: its prompt to the letter, with as many pairs as `length` tokens
hold. An answer is right, by the published rule, where the output holds the value. A base model is given the value's
opening quote too (`cue`), after which the value must follow; without it only generation can be scored, as published.
"""

import dataclasses
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below."


@dataclasses.dataclass(frozen=True)
class KeyValues:
    """The keys of a key-value retrieval task; `n` examples for every length (and depth, where depths are set)."""

    lengths: tuple[Length, ...]
    n: Count = 50
    depths: tuple[Share, ...] | None = None  # None: the pair asked for is drawn
    scoring: tuple[Scoring, ...] = ("teacher",)
    cue: bool = True  # end with the quote that opens the value
    new_tokens: Length = 100  # generated at most; prompt and answer alone fill the length
    seed: Seed = 0
    name: Literal["key_values"] = "key_values"
    label: str | None = None

    def __post_init__(self):
        scoring.check_retrieval(self)
        if not self.cue and "teacher" in self.scoring:
            raise ConfigError(
                "key_values.scoring: 'teacher' needs cue=True; without it the form of the answer is open."
            )


Task = KeyValues
METRICS = (metrics.TEACHER, metrics.MATCH_ALL, metrics.ANSWER_NLL)


def rows(task: KeyValues, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch,
        judge=scoring.match_all,
    )  # fmt: skip


def examples(task: KeyValues, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples (per depth) in at most `length` tokens each, answer included.

    Each depends on (tokenizer, length, depth, its number, seed) alone. ConfigError where `length` cannot hold one.
    """
    return [_one(task, tokenizer, length, depth, i) for depth in task.depths or (None,) for i in range(task.n)]


def prompt(pairs: Sequence[tuple[str, str]], key: str) -> str:
    """Returns the published prompt that asks for the value of a key."""
    data = ",\n ".join(f'"{k}": "{v}"' for k, v in pairs)
    return f'{INSTRUCTION}\n\nJSON data:\n{{{data}}}\n\nKey: "{key}"\nCorresponding value:'


def _one(task: KeyValues, tokenizer: Any, length: int, depth: float | None, i: int) -> Example:
    rng = random.Random(f"key_values {task.seed} {length} {depth} {i}")
    where, bos = rng.random(), tuple(tokenizer.prefix)
    pairs: list[tuple[str, str]] = []

    def build(more: int) -> Example:
        while len(pairs) < more + 1:
            key, value = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2))
            pairs.append((key, value))
        n = more + 1
        target = min(int(where * n), n - 1) if depth is None else round(depth * (n - 1))
        key, value = pairs[target]
        before, answer = scoring.split(tokenizer, prompt(pairs[:n], key) + (' "' if task.cue else ""), value)
        return Example(bos + before, answer, (value,), target / max(1, n - 1))

    _, example = scoring.largest(
        build,
        cost=lambda e: len(e.prompt) + len(e.answer),
        budget=length,
        probe=8,
        what=f"key_values at length {length}",
    )
    return example
