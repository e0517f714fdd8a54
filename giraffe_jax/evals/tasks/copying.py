"""Copying: a text is repeated later in the context, and the model has to predict the repeat.

- "random": random tokens, then the same tokens again (the induction probe of Olsson et al. 2022, arXiv:2209.11895, and
  the copying task of Jelassi et al. 2024, arXiv:2402.01032). They can only be predicted by copying.
- "text": a passage of a document, the text that follows it, then the passage again. A language model predicts some of
  it without looking back: `first_nll` in a row, the loss on the same tokens at their first occurrence, says how much.

The copying distance grows with the length: it is half the length, or the length minus one passage. Teacher-forced, in
one forward pass; the first `lead` tokens of the repeat are not scored, since they do not yet show what is repeated.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, lengths, scoring
from giraffe_jax.evals.metrics import Metric
from giraffe_jax.evals.scoring import Count, Seed
from giraffe_jax.evals.tasks import perplexity

LONG_LINE, LONG_WORD = 2**12, 2**6  # characters; in longer lines and words, passages may start in the middle

COPIED = Metric(
    "copied", "tokens copied", "fraction", "high",
    "Teacher-forced: the share of the repeated tokens, after the first few, that are the most likely ones where they "
    "are repeated.",
)  # fmt: skip
COPY_NLL = Metric("copy_nll", "loss on the copy, nats a token", "nll", "low")


@dataclasses.dataclass(frozen=True)
class Copying:
    """The keys of a copying task; `n` examples for every length."""

    VERSION: ClassVar[int] = 2  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    kind: Literal["random", "text"] = "random"  # What is repeated: "random" tokens, or a passage of "text".
    n: Count = 50
    documents: tuple[str, ...] = ()  # Text files or folders that passages of "text" are taken from.
    passage: Count = 64  # Tokens that "text" repeats. "random" repeats half of the length.
    lead: Count = 4  # Tokens of the repeat, at its start, that are not scored.
    seed: Seed = 0
    name: Literal["copying"] = "copying"
    label: str | None = None

    def __post_init__(self):
        if self.label is None:
            object.__setattr__(self, "label", f"copying/{self.kind}")
        if self.kind == "text" and not self.documents:
            raise ConfigError("copying.documents: kind 'text' repeats passages of text; name files or folders of it.")
        if self.kind == "text" and self.passage <= self.lead:
            raise ConfigError(
                f"copying.passage: expected more than the {self.lead} tokens that lead in (copying.lead), got "
                f"{self.passage}."
            )


Task = Copying
METRICS = (COPIED, COPY_NLL)


@dataclasses.dataclass(frozen=True)
class Copy:
    """Tokens, of which those from index `first` on are scored; each repeats the token `distance` positions earlier."""

    tokens: tuple[int, ...]
    first: int
    distance: int
    document: str | None = None


def rows(task: Copying, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example: metrics copied (share of scored tokens predicted) and copy_nll (their mean nats).

    `first_nll` is the loss on the same tokens at their first occurrence; `prompt` is a hash of all tokens.
    """
    copies = examples(task, lm.tokenizer, length)
    size = scoring.batch_size(length, tokens_per_batch, len(copies))
    needed = [np.r_[c.first : len(c.tokens), c.first - c.distance : len(c.tokens) - c.distance] for c in copies]
    scores = scoring.scores(lm, [c.tokens for c in copies], length, encoding, size, needed)
    for example, (copy, (nll, correct)) in enumerate(zip(copies, scores, strict=True)):
        nll = np.asarray(nll, np.float64)
        # nll[i] is the loss of token i + 1. As `lead` >= 1, the slice of the first occurrence cannot start below 0.
        repeat, original = slice(copy.first - 1, None), slice(copy.first - 1 - copy.distance, len(nll) - copy.distance)
        yield {
            "example": example,
            "metrics": {"copied": float(np.mean(correct[repeat])), "copy_nll": float(nll[repeat].mean())},
            "first_nll": float(nll[original].mean()),
            "distance": copy.distance,
            "prompt": hashlib.sha256(np.asarray(copy.tokens, "<i4").tobytes()).hexdigest()[:16],
        } | ({} if copy.document is None else {"document": copy.document})


@scoring.remembered
def examples(task: Copying, tokenizer: Any, length: int) -> list[Copy]:
    """Returns n examples of exactly `length` tokens, begin token included.

    Each depends only on (tokenizer, length, its index, seed) and, for "text", on the documents; the passages are then
    the same at every length. ConfigError if a repeat does not fit into `length`, or no document is long enough.
    """
    prefix = tuple(tokenizer.prefix)
    room = length - len(prefix)
    copied = room // 2 if task.kind == "random" else task.passage
    least = max(copied, task.lead + 1)
    if room < 2 * least:
        raise ConfigError(
            f"copying ({task.kind}) at length {length}: expected at least {len(prefix) + 2 * least} tokens, for "
            f"{least} that are repeated, {task.lead} of them not scored."
        )
    make = _random(task, tokenizer) if task.kind == "random" else _text(task, tokenizer)
    distance, copies = room - copied, []
    for i in range(task.n):
        document, tokens = make(length, i, distance)
        sequence = (*prefix, *tokens, *tokens[:copied])
        copies.append(Copy(sequence, len(prefix) + distance + task.lead, distance, document))
    return copies


def ordinary_ids(tokenizer: Any) -> np.ndarray:
    """Returns the ids of ordinary tokens, int [V'], increasing: without begin, end, padding, unknown or other control
    tokens, as the tokenizer's own files (tokenizer.json or a SentencePiece model) define them."""
    files = tokenizer.files()
    if "tokenizer.json" in files:
        parts = json.loads(files["tokenizer.json"])
        vocab = parts["model"]["vocab"]
        ids = set(vocab.values()) if isinstance(vocab, dict) else set(range(len(vocab)))
        ids -= {added["id"] for added in parts["added_tokens"] if added["special"]}
        unknown = parts["model"].get("unk_token")
        ids -= {parts["model"].get("unk_id"), vocab.get(unknown) if isinstance(vocab, dict) else None}
    else:
        import sentencepiece

        sp = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
        ids = {i for i in range(sp.GetPieceSize()) if not (sp.IsControl(i) or sp.IsUnknown(i) or sp.IsUnused(i))}
    return np.array(sorted(ids - {tokenizer.bos_id, tokenizer.eos_id, *tokenizer.prefix}), np.int64)


def _random(task: Copying, tokenizer: Any):
    """Returns a function (length, index, count) -> (None, `count` uniformly random tokens)."""
    ids = ordinary_ids(tokenizer)

    def make(length: int, i: int, count: int) -> tuple[str | None, tuple[int, ...]]:
        rng = np.random.default_rng([task.seed, length, i])
        return None, tuple(ids[rng.integers(len(ids), size=count)].tolist())

    return make


def _text(task: Copying, tokenizer: Any):
    """Returns a function (length, index, count) -> (document, `count` tokens from a random place in it that has enough
    text after it for the longest length)."""
    need = max(task.lengths) - len(tokenizer.prefix) - task.passage
    texts: list[tuple[str, str]] = []
    seen: list[tuple[int, str]] = []
    for name, path in cases.documents(task.documents, "copying.documents"):
        text = cases.text(path, "copying.documents")
        count = len(perplexity.head(tokenizer, text, need))
        seen.append((count + max(task.lengths) - need, str(path)))
        if count == need:
            texts.append((name, text))
    if not texts:
        raise lengths.refusal(task, max(task.lengths), *max(seen))

    def make(length: int, i: int, count: int) -> tuple[str | None, tuple[int, ...]]:
        rng = np.random.default_rng([task.seed, i])
        name, text = texts[rng.integers(len(texts))]
        place = len(text)
        while True:  # too near the end: retry closer to the start, which has enough
            place = _start(text, int(rng.integers(place)))
            tokens = perplexity.head(tokenizer, text[place:], need)
            if len(tokens) == need:
                return name, tuple(tokens[:count])

    return make


def _start(text: str, place: int) -> int:
    """Returns the start of the line at `place`; in a long line, the start of the word; in a long word, `place`."""
    near = max(0, place - LONG_LINE)
    if near == 0 or "\n" in text[near:place]:
        return text.rfind("\n", near, place) + 1
    return text.rfind(" ", place - LONG_WORD, place) + 1 or place
