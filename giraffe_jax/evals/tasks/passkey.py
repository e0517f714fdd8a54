"""Passkey retrieval: a number hidden in filler text is asked for at the end; by length and by depth.

Style "landmark" is the exact published prompt (Mohtashami and Jaggi 2023, 2305.16300; as used by YaRN, LongLoRA and
PoSE), with two changes that make scores comparable: the filler is cut so that prompt and answer fill `length` tokens of
the model's own tokenizer, and depths are set instead of random. The key always has five digits. Style "compact" is this
project's own short text, for models of a few million parameters (see `data.synthetic`).
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data import synthetic
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import filling, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
INFORMATION = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"


@dataclasses.dataclass(frozen=True)
class Passkey:
    """The keys of a passkey task; `n` examples for every length and depth."""

    VERSION: ClassVar[int] = 2  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    # Depth of the key: 0 before all filler, 1 right before the question.
    depths: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    n: Count = 20
    # "landmark" is the published prompt; "compact" a shorter one for small models.
    style: Literal["landmark", "compact"] = "landmark"
    scoring: tuple[Scoring, ...] = ("teacher",)
    new_tokens: Length = 10  # Most tokens to generate. They may exceed the length, which holds prompt and answer only.
    seed: Seed = 0
    name: Literal["passkey"] = "passkey"
    label: str | None = None

    def __post_init__(self):
        scoring.check_retrieval(self)


Task = Passkey
METRICS = (metrics.TEACHER, metrics.NUMBER, metrics.LAST_NUMBER, metrics.ANSWER_NLL)


def rows(task: Passkey, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example, depth by depth; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch
    )


@scoring.remembered
def examples(task: Passkey, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples per depth in at most `length` tokens each, answer included.

    Each depends only on (tokenizer, length, depth, its index, seed). ConfigError if none fits into `length`.
    """
    make = _landmark(task, tokenizer, length) if task.style == "landmark" else _compact(task, tokenizer)
    built: list[Example] = []
    for depth in task.depths:
        for i in range(task.n):
            built.append(make(task, tokenizer, length, depth, i))
    return built


def prompt(key: int, filler: int, depth: float) -> str:
    """Returns the published prompt with `filler` characters of filler text, the fraction `depth` of it before the key.

    The filler starts with its first sentence both before and after the key, as in the published code.
    """
    garbage = " ".join([GARBAGE] * (filler // (len(GARBAGE) + 1) + 1))
    before = round(depth * filler)
    information = INFORMATION.format(key=key)
    return "\n".join([INSTRUCTION, garbage[:before], information, garbage[: filler - before], QUESTION])


def _landmark(task: Passkey, tokenizer: Any, length: int):
    fill = filling.Filler(task, tokenizer, length, probe=256)

    def make(task: Passkey, tokenizer: Any, length: int, depth: float, i: int) -> Example:
        key = random.Random(f"passkey {task.seed} {length} {depth:.6f} {i}").randint(10_000, 99_999)
        return fill(lambda filler: filling.Made(prompt(key, filler, depth), f" {key}", key, depth))[1]

    return make


def _compact(task: Passkey, tokenizer: Any):
    encode = synthetic.piece_encoder(tokenizer)
    bos, slack = tuple(tokenizer.prefix), synthetic.granularity(lambda text: len(encode(text)))

    def make(task: Passkey, tokenizer: Any, length: int, depth: float, i: int) -> Example:
        rng = np.random.default_rng([task.seed, length, round(depth * 1e6), i])
        try:
            document = synthetic.passkey_document(rng, length - len(bos), lambda text: len(encode(text)), depth=depth)
        except ValueError as error:
            raise ConfigError(f"passkey (compact) at length {length}: {error}") from None
        return dataclasses.replace(scoring.from_pieces(document, encode, bos, depth), slack=slack)

    return make
