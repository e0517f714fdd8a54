"""Key-value retrieval: a JSON object of random UUIDs, and a question for the value of one key.

Liu et al., "Lost in the Middle", arXiv:2307.03172: its exact prompt, with as many pairs as fit into `length` tokens.
`files` are its published cases; if depths are set, the queried pair is moved there. By the published rule, an answer is
right if the output contains the value. Base models also get the value's opening quote (`cue`), which the value must
follow; without it only generation can be scored, as published.
"""

import dataclasses
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below."


@dataclasses.dataclass(frozen=True)
class KeyValues:
    """The keys of a key-value retrieval task; `n` examples for every length (and depth, where depths are set)."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    n: Count = 50
    # Depth of the queried pair, from 0 to 1. None is random; in published files, the pair then stays in place.
    depths: tuple[Share, ...] | None = None
    files: tuple[str, ...] = ()  # Published cases: JSON lines, also gzipped.
    scoring: tuple[Scoring, ...] = ("teacher",)
    cue: bool = True  # The prompt ends with the quote that opens the value.
    new_tokens: Length = 100  # Most tokens to generate. They may exceed the length, which holds prompt and answer only.
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


@scoring.remembered
def examples(task: KeyValues, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples (per depth) in at most `length` tokens each, answer included.

    Each depends only on (tokenizer, length, depth, its index, seed). ConfigError if none fits into `length`.
    """
    if task.files:
        kinds = {"ordered_kv_records": list, "key": str, "value": str}
        return [
            example
            for depth in task.depths or (None,)
            for example in cases.asked(
                cases.read(task.files, kinds, "key_values.files"),
                lambda row, depth=depth: _published(row, task, tokenizer, depth), task, length, "key_values.files",
            )
        ]  # fmt: skip
    fill = filling.Filler(task, tokenizer, length, probe=8)
    return [_one(task, fill, depth, i) for depth in task.depths or (None,) for i in range(task.n)]


def prompt(pairs: Sequence[Sequence[str]], key: str) -> str:
    """Returns the published prompt that asks for the value of a key."""
    data = ",\n ".join(f'"{k}": "{v}"' for k, v in pairs)
    return f'{INSTRUCTION}\n\nJSON data:\n{{{data}}}\n\nKey: "{key}"\nCorresponding value:'


def _published(row: dict[str, Any], task: KeyValues, tokenizer: Any, depth: float | None) -> Example:
    pairs, pair = list(row["ordered_kv_records"]), [row["key"], row["value"]]
    if pair not in pairs or not all(isinstance(p, list) and [type(x) for x in p] == [str, str] for p in pairs):
        raise ConfigError(f"key_values.files: the case of key {pair[0]!r} has no such pair, or records that are none.")
    if depth is not None:
        pairs.remove(pair)
        pairs.insert(round(depth * len(pairs)), pair)
    return filling.example(tokenizer, _made(task, pairs, pairs.index(pair)))


def _made(task: KeyValues, pairs: Sequence[Sequence[str]], target: int) -> filling.Made:
    key, value = pairs[target]
    cue = ' "' if task.cue else ""
    return filling.Made(prompt(pairs, key) + cue, value, (value,), target / max(1, len(pairs) - 1))


def _one(task: KeyValues, fill: filling.Filler, depth: float | None, i: int) -> Example:
    rng = random.Random(f"key_values {task.seed} {fill.length} {depth} {i}")
    where = rng.random()
    pairs: list[tuple[str, str]] = []

    def build(extra: int) -> filling.Made:
        while len(pairs) < extra + 1:
            key, value = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2))
            pairs.append((key, value))
        n = extra + 1
        target = min(int(where * n), n - 1) if depth is None else round(depth * (n - 1))
        return _made(task, pairs[:n], target)

    return fill(build)[1]
