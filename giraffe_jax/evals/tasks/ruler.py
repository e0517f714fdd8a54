"""RULER's thirteen tasks: needles in noise, in text and among needles; chains of variables; common and frequent words;
questions on documents among others.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv:2404.06654; the exact
prompts of NVIDIA/RULER (scripts/data/synthetic), including the answer prefixes that a base model continues. Scored by
the published rules: the share of the answers that the output contains; for questions, whether it contains one of them.
Questions are those of SQuAD (qa_1) and HotpotQA (qa_2), in the files that `documents` names (dev-v2.0.json,
hotpot_dev_distractor_v1.json).

Differences from the release, which make scores comparable: (1) every example shuffles its needles and words
independently (the release shuffles those of all examples alike); (2) keys are never repeated; (3) prompt and answer
fill `length` (the release leaves room for `new_tokens`); (4) prompts are filled to the sentence instead of to the next
25 sentences, and to the word if that leaves more than 2%; (5) words come from this project's own list (tasks/lines.py)
instead of a package's, joined in pairs if more are needed. `compat=True` does (1) and (3) as released.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, haystack, metrics, ruler_prompts, scoring
from giraffe_jax.evals.ruler_prompts import Needles, Questions
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share

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
NEW_TOKENS = dict.fromkeys(NEEDLES, 128) | dict(vt=30, cwe=120, fwe=50, qa_1=32, qa_2=32)
Kind = Literal[
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]  # fmt: skip
QA = dict(qa_1="SQuAD's dev-v2.0.json", qa_2="HotpotQA's hotpot_dev_distractor_v1.json")
# Kinds with a single right answer text, which teacher forcing needs; the answers of the others have no order.
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
    kind: Kind  # Which of RULER's 13 tasks.
    n: Count = 50
    # Depth of the needle, from 0 to 1, in tasks with one needle. None is random.
    depths: tuple[Share, ...] | None = None
    # Text files or folders for haystacks of text. For qa_1 and qa_2, the file of questions.
    documents: tuple[str, ...] = ()
    scoring: tuple[Scoring, ...] = ("generate",)
    new_tokens: Length | None = None  # Most tokens to generate. None is as published: 128, 30, 120, 50 or 32.
    hops: Count = 4  # Hops of a chain of "vt".
    chains: Count = 1  # Chains of "vt", of which one is asked for.
    # Shuffle and fill prompts exactly as the released code does; the task's file describes the differences.
    compat: bool = False
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

    Each depends only on (tokenizer, length, depth, its index, seed, documents). ConfigError if none fits.
    """
    needles = NEEDLES.get(task.kind)
    text = haystack.read(task.documents, "ruler.documents") if needles and needles.haystack == "text" else None
    qa = questions(task) if task.kind in QA else None
    answer = (task.new_tokens or 0) if task.compat else 0
    fill = filling.Filler(task, tokenizer, length, probe=32, answer=answer)
    return [_one(task, fill, depth, i, text, qa) for depth in task.depths or (None,) for i in range(task.n)]


def _one(
    task: Ruler,
    fill: filling.Filler,
    depth: float | None,
    i: int,
    text: haystack.Haystack | None,
    qa: Questions | None,
) -> Example:
    length = fill.length
    seed = f"ruler {task.kind} {task.seed} {length} {depth} {i}"
    order = f"ruler order {task.seed}" if task.compat else f"{seed} order"

    def make(size: int, end: haystack.End = haystack.NOTHING) -> filling.Made:
        rng, shuffle = random.Random(seed), random.Random(order).shuffle
        if task.kind == "vt":
            built = ruler_prompts.chain(rng, size, task.hops, task.chains)
        elif task.kind == "cwe":
            built = ruler_prompts.common(rng, shuffle, size, short=length < 4096)
        elif task.kind == "fwe":
            built = ruler_prompts.frequent(rng, shuffle, size, words=max(length // 50, 8))
        elif qa is not None:
            built = ruler_prompts.question(rng, shuffle, size, qa, i)
        else:
            built = ruler_prompts.needles(NEEDLES[task.kind], rng, shuffle, size, depth, text, end)
        prompt, answers, answer_text, where = built
        return filling.Made(prompt, answer_text, tuple(answers), where)

    return fill(make)[1] if text is None else haystack.filled(fill, make)


def questions(task: Ruler) -> Questions:
    """Returns the questions of SQuAD's or HotpotQA's file; ConfigError if the file is missing or not such a file."""
    path = Path(task.documents[0]).expanduser()
    if not path.is_file():
        raise ConfigError(f"ruler.documents: no such file: {path}.")
    try:
        data = json.loads(cases.text(path, "ruler.documents"))
        parsed = _squad(data["data"]) if task.kind == "qa_1" else _hotpot(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"{type(e).__name__}: {e}"
        raise ConfigError(f"ruler.documents: {path} is not {QA[task.kind]} ({reason}).") from e
    if not parsed.cases:
        raise ConfigError(f"ruler.documents: {path} has no question that can be answered.")
    return parsed


def _squad(articles: Any) -> Questions:
    documents = sorted({p["context"] for article in articles for p in article["paragraphs"]})
    number, entries = {text: i for i, text in enumerate(documents)}, []
    for article in articles:
        siblings = [number[p["context"]] for p in article["paragraphs"]]
        for p in article["paragraphs"]:
            gold = number[p["context"]]
            for qa in p["qas"]:
                if not qa["is_impossible"]:
                    answers = tuple(dict.fromkeys(str(a["text"]) for a in qa["answers"]))
                    entries.append((str(qa["question"]), answers, [gold], [d for d in siblings if d != gold]))
    return Questions(documents, entries)


def _hotpot(rows: Any) -> Questions:
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
    documents = sorted({text for context in texts for text in context})
    number = {text: i for i, text in enumerate(documents)}
    return Questions(
        documents,
        [
            (str(row["question"]), (str(row["answer"]),), list(dict.fromkeys(number[text] for text in context)), [])
            for row, context in zip(rows, texts, strict=True)
        ],
    )
