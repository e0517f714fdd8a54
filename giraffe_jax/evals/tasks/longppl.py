"""LongPPL: perplexity over key tokens, those that a model predicts much better with long context than with short.

Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", arXiv:2410.23771. An `evaluator` model
reads every document twice, in one pass and in short passes; a token is key if loss_short - loss_full > alpha and
loss_full < -beta (nats). As in the released code, scored tokens of a short pass have `window` to `window + stride - 1`
tokens before them, and none of the first `window` tokens of a document is key. The evaluated model's perplexity is then
computed over the tokens whose text overlaps a key token, in one pass over the first `length` tokens of every document.

Differences from the released code: if a model's texts start with a begin token, every pass starts with it, the short
ones and those of the evaluated model too; the first token, which has no prediction, is never scored. The evaluator
reads each document once, up to the longest of `lengths` tokens: whether a token is key does not depend on later text.
If the evaluated model has another tokenizer, text beyond that has no key tokens.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from giraffe_jax.config import Bound, ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, lengths, metrics, scoring
from giraffe_jax.evals.scoring import Count
from giraffe_jax.evals.tasks import perplexity

# Most tokens whose texts only together are whole characters. No character takes nearly as many.
LONGEST_GROUP = 64


@dataclasses.dataclass(frozen=True)
class LongPPL:
    """The keys of a LongPPL task; `n` counts documents, in sorted order, those long enough for the longest length."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    documents: tuple[str, ...]  # Text files, or folders whose .txt, .md and .py files are read, however deep.
    # Model that chooses the key tokens: anything that TrainConfig.source accepts. Required.
    evaluator: str | None = None
    window: Annotated[int, Bound(1)] = 4096  # Least context of a scored token in a short pass, in evaluator tokens.
    stride: Annotated[int, Bound(1)] = 1024  # Tokens that one short pass scores, in evaluator tokens.
    alpha: float = 2.0  # Least improvement of a key token's loss by the long context, in nats.
    beta: float = -2.0  # Least log-probability of a key token with the long context.
    n: Count | None = 16  # Documents. None is all of them.
    name: Literal["longppl"] = "longppl"
    label: str | None = None

    def __post_init__(self):
        if not self.evaluator:
            raise ConfigError(
                "longppl.evaluator: missing. Name the model that picks the key tokens: a directory, a file, a workdir "
                f"or a packaged model that reads {max(self.lengths, default=0)} tokens well. The evaluated weights are "
                "no default: beyond their trained length they gain nothing from more text, and each variant would be "
                "asked other tokens."
            )
        if self.lengths and min(self.lengths) <= self.window:
            raise ConfigError(
                f"longppl.window: expected less than the shortest length, {min(self.lengths)}, since none of the "
                f"first {self.window} tokens is key; got {self.window}."
            )


Task = LongPPL
METRICS = (metrics.PERPLEXITY,)


@dataclasses.dataclass(frozen=True)
class Window:
    """The first tokens of a document, int32 [T], begin token included."""

    document: str
    path: Path
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Keys:
    """A document's key tokens, in the evaluator's tokenizer; `ids` are without the begin token."""

    path: Path
    tokenizer: Any
    fingerprint: str
    ids: Sequence[int]
    indices: np.ndarray  # int [K], increasing

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """bool [C]: whether each character of the document is in a key token; characters beyond C are in none."""
        token_spans = spans(self.tokenizer, self.ids, cases.text(self.path, "longppl.documents"), str(self.path))
        marked = np.zeros(token_spans[-1, 1], bool)
        for start, end in token_spans[self.indices]:
            marked[start:end] = True
        return marked


def rows(task: LongPPL, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per document with key tokens: metrics nll (mean nats of the key tokens) and tokens (their number).

    `plain_nll` is the mean over all tokens of the same pass. ConfigError if no document has a key token.
    """
    windows = examples(task, lm.tokenizer, length)
    paths = tuple(w.path for w in windows)
    numbers = (max(task.lengths), task.window, task.stride, task.alpha, task.beta)
    keys = key_tokens(str(task.evaluator), paths, *numbers, tokens_per_batch)
    chosen = [(i, w, scored(k, w, lm.tokenizer)) for i, (w, k) in enumerate(zip(windows, keys, strict=True))]
    chosen = [(i, w, key) for i, w, key in chosen if key.any()]
    if not chosen:
        raise ConfigError(
            f"longppl: none of the {len(windows)} documents has a key token within {length} tokens: {task.evaluator} "
            f"predicts no token with a loss below {-task.beta:g} and by more than {task.alpha:g} nats better than from "
            f"{task.window} tokens. Give longer documents, a smaller window, a smaller alpha or another evaluator."
        )
    size = scoring.batch_size(length, tokens_per_batch, len(chosen))
    scores = scoring.scores(lm, [w.tokens for _, w, _ in chosen], length, encoding, size)
    for (i, window, key), (nll, _) in zip(chosen, scores, strict=True):
        nll = np.asarray(nll, np.float64)
        yield {
            "example": i,
            "metrics": {"nll": float(nll[key].mean()), "tokens": int(key.sum())},
            "protocol": "longppl",
            "document": window.document,
            "window": 0,
            "plain_nll": float(nll.mean()),
        }


@scoring.remembered
def examples(task: LongPPL, tokenizer: Any, length: int) -> list[Window]:
    """Returns the first `length` tokens of each document that is long enough for the longest of the task's lengths.

    ConfigError if a document is missing or none is long enough (naming the longest and its tokens).
    """
    prefix, longest = list(tokenizer.prefix), max(task.lengths)
    windows: list[Window] = []
    seen: list[tuple[int, str]] = []
    for name, path in cases.documents(task.documents, "longppl.documents"):
        tokens = prefix + perplexity.head(tokenizer, cases.text(path, "longppl.documents"), longest - len(prefix))
        seen.append((len(tokens), str(path)))
        if len(tokens) == longest:
            windows.append(Window(name, path, np.asarray(tokens[:length], np.int32)))
        if len(windows) == task.n:
            break
    if not windows:
        raise lengths.refusal(task, max(task.lengths), *max(seen))
    return windows


@functools.lru_cache(maxsize=8)
def key_tokens(
    evaluator: str,
    paths: tuple[Path, ...],
    longest: int,
    window: int,
    stride: int,
    alpha: float,
    beta: float,
    tokens_per_batch: int,
) -> tuple[Keys, ...]:
    """Returns the key tokens of each text file; cached, so that the evaluator runs once for all variants.

    The evaluator is loaded in addition to the evaluated model, and freed after it has read the files.

    Args:
      evaluator: source of the model that chooses key tokens.
      paths: text files.
      longest: tokens of a file that it reads, begin token included.
      window: least number of tokens in a short context; none of a file's first `window` tokens is key.
      stride: tokens that one short pass scores.
      alpha: least improvement of a key token's loss by the full context, nats.
      beta: least log-probability of a key token in the full context.
      tokens_per_batch: tokens in one forward pass.

    Raises:
      ConfigError: the evaluator's original_len is below `longest` and it has no position methods.
    """
    from giraffe_jax.loading import load

    lm = load(evaluator)
    if longest > lm.config.original_len and not lm.config.positions:
        raise ConfigError(
            f"longppl.evaluator: {evaluator} was trained at {lm.config.original_len} tokens and has no position "
            f"methods for more, so what it gains from {longest} tokens says nothing; expected a model that reads them."
        )
    prefix, fingerprint = list(lm.tokenizer.prefix), lm.tokenizer.fingerprint
    texts = [
        perplexity.head(lm.tokenizer, cases.text(path, "longppl.documents"), longest - len(prefix)) for path in paths
    ]

    def losses(passes: list[list[int]], length: int) -> list[np.ndarray]:
        """Returns the nats of each pass's tokens, float64; without a begin token, the first token has none."""
        size = scoring.batch_size(length, tokens_per_batch, len(passes))
        scores = scoring.scores(lm, [prefix + ids for ids in passes], length, lm.config.bind(length), size)
        return [np.asarray(nll, np.float64)[max(0, len(prefix) - 1) :] for nll, _ in scores]

    first = 0 if prefix else 1  # the first token that has a loss
    full = losses(texts, longest)
    places = [(d, start) for d, ids in enumerate(texts) for start in range(0, len(ids) - window, stride)]
    short = losses(
        [texts[d][start : start + window + stride] for d, start in places],
        min(longest, len(prefix) + window + stride),
    )
    indices: list[list[int]] = [[] for _ in texts]
    for (d, start), short_nll in zip(places, short, strict=True):
        short_nll = short_nll[window - first :]
        full_nll = full[d][start + window - first :][: len(short_nll)]
        key = (short_nll - full_nll > alpha) & (full_nll < -beta)
        indices[d] += (start + window + np.flatnonzero(key)).tolist()
    return tuple(
        Keys(path, lm.tokenizer, fingerprint, ids, np.asarray(key_indices, np.int64))
        for path, ids, key_indices in zip(paths, texts, indices, strict=True)
    )


def spans(tokenizer: Any, ids: Sequence[int], text: str, where: str = "text") -> np.ndarray:
    """Returns the span [start, end) of each token in characters of `text`, int [T, 2]; `ids` are its first tokens.

    Every token starts where the last one ends, except that tokens which decode to whole characters only together (such
    as the bytes of one) share a span. A token without text, such as a leading space that decoding drops, has an empty
    span.

    Raises:
      ConfigError: the ids do not decode to the text (a tokenizer that normalises or lacks characters).
    """
    token_spans = np.zeros((len(ids), 2), np.int64)
    position = before = start = 0  # in the text; starts of the last complete group and of the current one
    for end in range(1, len(ids) + 1):
        # Decoded together with the group before it: at the start of a text, decoding may drop a space.
        new = tokenizer.decode(ids[before:end])[len(tokenizer.decode(ids[before:start])) :]
        last = end == len(ids)
        # A replacement character at the end: an incomplete character, or one that is in the text.
        whole = text.startswith(new, position) and (last or not new.endswith("\ufffd"))
        stop = position + len(new)
        if last and not whole:  # the last token ends within a character: count all of it
            new = new.rstrip("\ufffd")
            whole, stop = text.startswith(new, position), min(position + len(new) + 1, len(text))
        if whole:
            token_spans[start:end] = position, stop
            before, start, position = start, end, stop
        elif last or end - start >= LONGEST_GROUP:
            raise ConfigError(
                f"longppl: {where}: its tokens do not decode to its text: expected {text[position : position + 40]!r} "
                f"at character {position}, got {new[:40]!r}. Between two tokenizers, key tokens are carried over by "
                "the text; give an evaluator of the evaluated model's tokenizer."
            )
    return token_spans


def scored(keys: Keys, window: Window, tokenizer: Any) -> np.ndarray:
    """Returns bool [T - 1]: whether each of a window's tokens, from the second on, overlaps a key token."""
    begin = len(tokenizer.prefix)
    key = np.zeros(len(window.tokens), bool)
    if tokenizer.fingerprint == keys.fingerprint:
        positions = begin + keys.indices
        key[positions[positions < len(key)]] = True
    elif len(keys.indices):
        marked = np.concatenate([[0], np.cumsum(keys.characters)])
        token_spans = spans(
            tokenizer, window.tokens[begin:].tolist(), cases.text(window.path, "longppl.documents"), str(window.path)
        )
        token_spans = np.minimum(token_spans, len(marked) - 1)
        key[begin:] = marked[token_spans[:, 1]] > marked[token_spans[:, 0]]
    return key[1:]
