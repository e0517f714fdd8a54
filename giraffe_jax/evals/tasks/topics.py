"""Topic retrieval: a record of conversations, and the question which topic came first (LongEval's coarse-grained task).

Li et al., LongChat 2023. `files` are the published cases (JSON lines of prompt and topics), each used at the shortest
length that it fits into; `conversations` are the generator's input (JSON lines of topic and conversation), from which
its exact prompt is built, with as many conversations as fit into `length` tokens. Base models get LongEval's cue for
text-completion models. Difference: LongEval lets another model judge the output; here the output must contain the
topic's name, ignoring case.
"""

import dataclasses
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed

HEADER = (
    "Below is a record of our previous conversation on {count} different topics. You are the ASSISTANT, and I am the "
    "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize "
    "each <TOPIC>. At the end of the record, I will ask you to retrieve the first topic. Now the record start. "
)
QUESTION = (
    " Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. Do not summarize "
    "yourself."
)
CUE = "\n ASSISTANT: The first topic is"


@dataclasses.dataclass(frozen=True)
class Topics:
    """The keys of a topic retrieval task; `n` examples for every length."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    files: tuple[str, ...] = ()  # Published cases.
    conversations: tuple[str, ...] = ()  # JSON lines of {"topic", "conversation"} to build cases from.
    n: Count = 50
    scoring: tuple[Scoring, ...] = ("generate",)
    cue: bool = True
    new_tokens: Length = 50  # Most tokens to generate, as published.
    seed: Seed = 0
    name: Literal["topics"] = "topics"
    label: str | None = None

    def __post_init__(self):
        scoring.check_retrieval(self)
        if bool(self.files) == bool(self.conversations):
            raise ConfigError("topics: name either `files` of published cases or `conversations` to build them from.")
        if "teacher" in self.scoring and not self.cue:
            raise ConfigError("topics.scoring: 'teacher' needs cue=True; without it the form of the answer is open.")


Task = Topics
METRICS = (metrics.TEACHER, metrics.MATCH_PART, metrics.ANSWER_NLL)


def rows(task: Topics, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch,
        judge=scoring.match_part,
    )  # fmt: skip


@scoring.remembered
def examples(task: Topics, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples in at most `length` tokens each, answer included; ConfigError if there is none.

    An example built from conversations depends only on (tokenizer, length, its index, seed, conversations).
    """
    if task.files:
        kinds = {"prompt": str, "topics": list}
        return cases.asked(
            cases.read(task.files, kinds, "topics.files"),
            lambda row: filling.example(tokenizer, _made(task, row["prompt"].rstrip(" "), str(row["topics"][0]))),
            task, length, "topics.files",
        )  # fmt: skip
    kinds = {"topic": str, "conversation": str}
    talks = [(r["topic"], r["conversation"]) for r in cases.read(task.conversations, kinds, "topics.conversations")]
    if not talks:
        raise ConfigError(f"topics.conversations: there are none in {', '.join(task.conversations)}.")
    fill = filling.Filler(task, tokenizer, length, probe=2)
    return [_built(task, fill, i, talks) for i in range(task.n)]


def prompt(conversations: Sequence[str]) -> str:
    """Returns the published prompt over a record of conversations."""
    return HEADER.format(count=len(conversations)) + "".join(conversations) + QUESTION


def _built(task: Topics, fill: filling.Filler, i: int, talks: Sequence[tuple[str, str]]) -> Example:
    order = list(talks)
    random.Random(f"topics {task.seed} {fill.length} {i}").shuffle(order)

    def build(extra: int) -> filling.Made:
        return _made(task, prompt([text for _, text in order[: extra + 1]]), order[0][0])

    return fill(build, most=len(order) - 1)[1]


def _made(task: Topics, text: str, topic: str) -> filling.Made:
    # The answer is spelled as in the conversation: labels start with a capital where the text does not.
    match = re.search(r"discuss the topic of " + re.escape(topic), text, re.IGNORECASE)
    spelled = match[0][-len(topic) :] if match else topic
    return filling.Made(text + (CUE if task.cue else ""), f" {spelled}", (topic,), 0.0)
