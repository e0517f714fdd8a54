"""LongPPL: perplexity over key tokens, those that a model predicts much better from the whole text than from its end.

Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", arXiv:2410.23771. An `evaluator` reads
every document twice, whole and in short passes; a token is key where loss_short - loss_full > alpha and loss_full <
-beta (natural logarithms). As in the released code, the tokens of a short pass that count have `window` to `window +
stride - 1` tokens before them, and none of the first `window` of a document is key. The evaluated model's perplexity is
then taken over the tokens whose text overlaps that of a key token, in one pass over the first `length` tokens of every
document.

What is done otherwise than released: begin tokens stand before every pass of a model whose texts begin with one, the
evaluated model's and the short ones too; a token without a prediction, the first, is never scored. The evaluator reads
a document once, as many of its tokens as the longest of `lengths`: what is key does not depend on how much follows.
Where the evaluated model's tokenizer is another, text beyond that has no key tokens.
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

# Tokens that may have to be read before their text is whole. No character takes nearly as many.
LONGEST_GROUP = 64


@dataclasses.dataclass(frozen=True)
class LongPPL:
    """The keys of a LongPPL task; `n` counts documents, in sorted order, those long enough for the longest length."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    documents: tuple[str, ...]  # Text files, or folders whose .txt, .md and .py files are read, however deep.
    # Model that chooses the key tokens, named as TrainConfig.source names weights. Required.
    evaluator: str | None = None
    window: Annotated[int, Bound(1)] = 4096  # Least context of a short pass, in the evaluator's tokens.
    stride: Annotated[int, Bound(1)] = 1024  # Tokens that one short pass scores, the evaluator's.
    alpha: float = 2.0  # Least gain of a key token by the long context, in nats.
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
    """The first tokens of a document, int32 [T], those that every text begins with included."""

    document: str
    path: Path
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Keys:
    """Which of a document's tokens are key, by the evaluator's tokenizer; `ids` are without begin tokens."""

    path: Path
    tokenizer: Any
    fingerprint: str
    ids: Sequence[int]
    indices: np.ndarray  # int [K], increasing

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """bool [C], which of the document's characters are in a key token; those after are in none."""
        found = spans(self.tokenizer, self.ids, cases.text(self.path, "longppl.documents"), str(self.path))
        marked = np.zeros(found[-1, 1], bool)
        for start, end in found[self.indices]:
            marked[start:end] = True
        return marked


def rows(task: LongPPL, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per document that has key tokens: metrics nll (mean nats of the key tokens) and tokens (how many).

    `plain_nll` is the mean over all tokens of the same pass. ConfigError where no document has a key token.
    """
    windows = examples(task, lm.tokenizer, length)
    paths = tuple(w.path for w in windows)
    numbers = (max(task.lengths), task.window, task.stride, task.alpha, task.beta)
    found = key_tokens(str(task.evaluator), paths, *numbers, tokens_per_batch)
    chosen = [(i, w, scored(k, w, lm.tokenizer)) for i, (w, k) in enumerate(zip(windows, found, strict=True))]
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
    """Returns the first `length` tokens of each document that has as many as the longest of the task's lengths.

    ConfigError where a document is missing or none is long enough (naming the longest and its tokens).
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
    """Returns the key tokens of each text file; kept in memory, so that the evaluator runs once for all variants.

    The evaluator is loaded beside the evaluated model and let go when it has read the files.

    Args:
      evaluator: source of the model that picks.
      paths: text files.
      longest: tokens of a file that it reads, begin token included.
      window: tokens that a short context has at least; none of a file's first `window` tokens is key.
      stride: tokens that one short pass scores.
      alpha: nats that a key token gains at least from the whole context.
      beta: log-probability that a key token has at least in the whole context.
      tokens_per_batch: in one forward pass.

    Raises:
      ConfigError: the evaluator was trained at less than `longest` and has no method for more.
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
        """Nats of each pass's tokens, float64; of the very first, if nothing stands before it, there is none."""
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
    for (d, start), from_end in zip(places, short, strict=True):
        from_end = from_end[window - first :]
        whole = full[d][start + window - first :][: len(from_end)]
        key = (from_end - whole > alpha) & (whole < -beta)
        indices[d] += (start + window + np.flatnonzero(key)).tolist()
    return tuple(
        Keys(path, lm.tokenizer, fingerprint, ids, np.asarray(found, np.int64))
        for path, ids, found in zip(paths, texts, indices, strict=True)
    )


def spans(tokenizer: Any, ids: Sequence[int], text: str, where: str = "text") -> np.ndarray:
    """Returns [start, end) of each token in a text's characters, int [T, 2]; the ids are those of the text's beginning.

    Every token starts where the one before it ends, except that tokens which only together are whole characters (bytes
    of one, say) share one span. A token without text of its own, such as a leading space that decoding drops, is empty.

    Raises:
      ConfigError: the ids do not decode to the text (a tokenizer that normalises or lacks characters).
    """
    found = np.zeros((len(ids), 2), np.int64)
    position = before = start = 0  # the text so far; the last whole group; the one that is being read
    for end in range(1, len(ids) + 1):
        # Decoded after the group before it, since at the start of a text a space may be dropped.
        new = tokenizer.decode(ids[before:end])[len(tokenizer.decode(ids[before:start])) :]
        last = end == len(ids)
        # A last replacement character: bytes whose character the next token ends, or one that the text has.
        whole = text.startswith(new, position) and (last or not new.endswith("\ufffd"))
        stop = position + len(new)
        if last and not whole:  # cut within a character: the part counts as all of it
            new = new.rstrip("\ufffd")
            whole, stop = text.startswith(new, position), min(position + len(new) + 1, len(text))
        if whole:
            found[start:end] = position, stop
            before, start, position = start, end, stop
        elif last or end - start >= LONGEST_GROUP:
            raise ConfigError(
                f"longppl: {where}: its tokens do not decode to its text: expected {text[position : position + 40]!r} "
                f"at character {position}, got {new[:40]!r}. Between two tokenizers, key tokens are carried over by "
                "the text; give an evaluator of the evaluated model's tokenizer."
            )
    return found


def scored(keys: Keys, window: Window, tokenizer: Any) -> np.ndarray:
    """Returns bool [T - 1]: which of a window's tokens from the second on are key for the evaluator."""
    begin = len(tokenizer.prefix)
    key = np.zeros(len(window.tokens), bool)
    if tokenizer.fingerprint == keys.fingerprint:
        inside = begin + keys.indices
        key[inside[inside < len(key)]] = True
    elif len(keys.indices):
        marked = np.concatenate([[0], np.cumsum(keys.characters)])
        found = spans(
            tokenizer, window.tokens[begin:].tolist(), cases.text(window.path, "longppl.documents"), str(window.path)
        )
        found = np.minimum(found, len(marked) - 1)
        key[begin:] = marked[found[:, 1]] > marked[found[:, 0]]
    return key[1:]
