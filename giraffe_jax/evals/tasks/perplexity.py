"""Perplexity by length, under one of four protocols that the literature all calls "perplexity".

- `aligned`: windows of all lengths end at the same places of a document, `stride` tokens apart, and score the same last
  `stride` tokens; only the amount of context before them differs. Use it to compare lengths and methods.
- `truncated`: the first `length` tokens of every document in one pass (YaRN's tables and figure 1).
- `strided`: a window of `length` tokens moves by `stride`; every window scores its last `stride` tokens, the first one
  all of its tokens. Positions restart in every window (Press et al. 2022; PI and LongLoRA with stride 256).
- `chunked`: non-overlapping windows, all tokens scored (most in-training evaluations). Pessimistic: a window's first
  tokens have no context.

A row is one window: mean loss, number of scored tokens, and the summed loss per bin of context length, which gives the
loss-by-position curve. How windows are averaged (token, window or document) is decided later, by `stats.mean_nll`. All
lengths of a task score the same documents: those long enough for the longest.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from giraffe_jax.config import Bound, ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, lengths, metrics, scoring
from giraffe_jax.evals.scoring import Count

SAMPLE = 2048  # characters from which the tokens per character of a text are estimated
BESIDE = 32  # tokens before a cut that may differ from those of the whole text


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The keys of a perplexity task; `n` counts windows, taken one per document in turn, documents in sorted order."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    documents: tuple[str, ...]  # Text files, or folders whose .txt, .md and .py files are read, however deep.
    # Which windows are scored: "aligned" the same last tokens at every length, "strided" a moving window, "truncated"
    # the start of each document, "chunked" non-overlapping windows.
    protocol: Literal["aligned", "strided", "truncated", "chunked"] = "aligned"
    # Tokens from one window to the next. None is an eighth of the length; if aligned, of the shortest length.
    stride: Annotated[int, Bound(1)] | None = None
    n: Count | None = 16  # Windows, one of each document in turn. None is all windows of all documents.
    # Where the begin token goes, if the model's texts begin with one: before each window, or each document.
    bos: Literal["window", "document"] = "window"
    # Number of bins of context length in the loss-by-position curve.
    bins: Annotated[int, Bound(1, high=2**16)] = 16
    bin_spacing: Literal["log", "uniform"] = "log"  # Bins that grow by equal factors ("log"), or are equally wide.
    name: Literal["perplexity"] = "perplexity"
    label: str | None = None

    def __post_init__(self):
        if not self.documents:
            raise ConfigError("perplexity.documents: the list is empty; name text files or directories of them.")


Task = Perplexity
METRICS = (metrics.PERPLEXITY,)


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens to score in one pass; those before index `first` are context only."""

    document: str
    index: int
    tokens: np.ndarray
    first: int


def rows(task: Perplexity, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per window: metrics nll (mean nats) and tokens; bins [low, high, summed nats, tokens]."""
    windows = examples(task, lm.tokenizer, length)
    edges = bin_edges(length, task.bins, task.bin_spacing)
    size = scoring.batch_size(length, tokens_per_batch, len(windows))
    needed = [range(w.first, length) for w in windows]
    scores = scoring.scores(lm, [w.tokens for w in windows], length, encoding, size, needed)
    for example, (window, (nll, _)) in enumerate(zip(windows, scores, strict=True)):
        scored = np.asarray(nll, np.float64)[window.first - 1 :]
        context = np.arange(window.first, length)
        yield {
            "example": example,
            "metrics": {"nll": float(scored.mean()), "tokens": len(scored)},
            "protocol": task.protocol,
            "document": window.document,
            "window": window.index,
            "bins": _bins(scored, context, edges),
        }


@scoring.remembered
def examples(task: Perplexity, tokenizer: Any, length: int) -> list[Window]:
    """Returns the windows of `length` tokens that the task scores.

    ConfigError if a document is missing, none is long enough (naming the longest and its tokens), or the stride is out
    of range.
    """
    stride = _stride(task, length)
    bos = list(tokenizer.prefix)
    window_tokens = length - len(bos) * (task.bos == "window")  # document tokens per window
    longest = max(task.lengths)
    chosen: list[tuple[str, str]] = []
    seen: list[tuple[int, str]] = []
    for name, path in cases.documents(task.documents, "perplexity.documents"):
        text = cases.text(path, "perplexity.documents")
        count = len(head(tokenizer, text, longest)) + len(bos)
        seen.append((count, str(path)))
        if count >= longest:
            chosen.append((name, text))
        if task.n is not None and len(chosen) == task.n:
            break
    if not chosen:
        raise lengths.refusal(task, max(task.lengths), *max(seen))
    step = {"truncated": 0, "chunked": window_tokens, "strided": stride, "aligned": stride}[task.protocol]
    # Aligned windows end where those of the longest length do.
    skipped = longest - length if task.protocol == "aligned" else 0
    per_document = 1 if step == 0 else None if task.n is None else math.ceil(task.n / len(chosen))
    windows = []
    for name, text in chosen:
        tokens = head(
            tokenizer, text, None if per_document is None else skipped + window_tokens + (per_document - 1) * step
        )
        tokens = (bos + tokens if task.bos == "document" else tokens)[skipped:]
        count = 1 if step == 0 else (len(tokens) - window_tokens) // step + 1
        for k in range(count if per_document is None else min(count, per_document)):
            piece = tokens[k * step : k * step + window_tokens]
            piece = bos + piece if task.bos == "window" else piece
            all_scored = task.protocol in ("truncated", "chunked") or (task.protocol == "strided" and k == 0)
            first = 1 if all_scored else length - stride
            windows.append(Window(name, k, np.asarray(piece, np.int32), first))
    # The first window of every document comes before the second of any, so the first n cover the most documents.
    windows.sort(key=lambda w: w.index)
    return windows if task.n is None else windows[: task.n]


def bin_edges(length: int, bins: int, spacing: str = "log") -> list[int]:
    """Returns increasing edges, from 1 to `length`, of at most `bins` bins of context (tokens before the target)."""
    space = np.geomspace if spacing == "log" else np.linspace
    return sorted({int(round(x)) for x in space(1, length, bins + 1)})


def head(tokenizer: Any, text: str, count: int | None) -> list[int]:
    """Returns the first `count` tokens of a text (fewer if it has fewer; all if None) without tokenising much more.

    So that a whole book is not tokenised for its first page, only a prefix is; its size is estimated from the first
    tokens, and doubled while it is too short. The prefix ends at a line end, else between words, else anywhere. Tokens
    next to the cut are dropped, since they may differ from those of the whole text.
    """
    if count is None:
        return tokenizer.encode(text)
    start = text[:SAMPLE]
    size = int(1.1 * (count + BESIDE) * len(start) / max(1, len(tokenizer.encode(start)))) + SAMPLE
    while True:
        tokens = tokenizer.encode(text[: _cut(text, size)])
        if size >= len(text) or len(tokens) >= count + BESIDE:
            return tokens[:count]
        size *= 2


def _cut(text: str, size: int) -> int:
    """Returns where to cut a text, at most `size` characters in, without splitting a word if possible."""
    if size >= len(text):
        return len(text)
    places = (text.rfind(mark, size - SAMPLE // 2, size) for mark in ("\n", " "))
    return next((place for place in places if place > 0), size)


def _bins(nll: np.ndarray, context: np.ndarray, edges: list[int]) -> list[list[float]]:
    table: list[list[float]] = []
    for low, high in zip(edges, edges[1:], strict=False):
        bin_nll = nll[(context >= low) & (context < high)]
        if len(bin_nll):
            table.append([low, high, float(bin_nll.sum()), len(bin_nll)])
    return table


def _stride(task: Perplexity, length: int) -> int:
    if task.stride is not None and task.protocol not in ("aligned", "strided"):
        raise ConfigError(
            f"perplexity.stride: only 'aligned' and 'strided' have one, got {task.stride} with {task.protocol!r}."
        )
    shortest = min(task.lengths) if task.protocol == "aligned" else length
    stride = task.stride or max(1, shortest // 8)
    if not 1 <= stride < shortest:
        raise ConfigError(f"perplexity.stride: expected 1 to length - 1 = {shortest - 1}, got {stride}.")
    return stride
