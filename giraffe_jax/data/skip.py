"""Rows made of stretches of one document that lie apart: PoSE and CREAM with the text that belongs to their positions.

Zhu et al., "PoSE", arXiv:2309.10400, dwzhu-pku/PoSE, src/train_pose.py; Wu et al., "CREAM", arXiv:2406.07138,
bigai-nlco/CREAM, src/train.py (both read). The methods `pose` and `cream` move the positions of unbroken text inside
the training step; here the later stretches are cut from later in the document, and rows come with their positions, so
neither method is in the model's list. One row per document and epoch, a document's stretches being one segment.

Unlike the released code, a stretch's last token is asked for the token that follows it in its document, not for the
first one of the next stretch, and CREAM's middle never overlaps its tail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from giraffe_jax.config import Bound
from giraffe_jax.data.packing import Length, empty_row
from giraffe_jax.data.source import Tokens


@dataclass(frozen=True)
class SkipConfig:
    """Rows of stretches that lie apart; combine with a frequency method of factor target_len / seq_len."""

    kind: Literal["pose", "cream"]  # Which method places the stretches.
    target_len: Length  # Length to train for, in tokens. For "cream" a multiple of seq_len.
    # Windows of a document, from its start, in which the second stretch of "pose" may begin.
    reach: Annotated[int, Bound(1)] = 5
    sigma: Annotated[float, Bound(0.0, above=True)] = 3.0  # Of the Gaussian of "cream".


class Stretches(NamedTuple):
    """Which tokens of a document a row holds, and the positions they are read at."""

    index: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]


def pose(rng: np.random.Generator, size: int, seq_len: int, config: SkipConfig) -> Stretches:
    """r tokens from the start, r ~ U{1 .. (n + 1) // 2} for rows of n; the rest ends at U{n .. min(size, reach n)} in
    the text, and is read u ~ U{0 .. target_len - n} positions further on. Text and positions skip by themselves."""
    n = min(size, seq_len)
    first = int(rng.integers(1, (n + 1) // 2 + 1))
    end = int(rng.integers(n, min(size, config.reach * seq_len) + 1))
    skip = int(rng.integers(0, config.target_len - n + 1))
    rest = np.arange(first, n)
    return Stretches(np.append(np.arange(first), rest + end - n), np.append(np.arange(first), rest + skip))


def cream(rng: np.random.Generator, size: int, seq_len: int, config: SkipConfig) -> Stretches:
    """Head 0 .. h - 1, tail of h at the end of the target length, and a middle that ends as in the method `cream`.

    The tail's text is the document's end. The middle's text is where its positions say, or right before the tail where
    the document is too short for that. One or two tokens make no three parts and stay as they are.
    """
    n, factor = min(size, seq_len), config.target_len // seq_len
    if n < 3:
        return Stretches(np.arange(n), np.arange(n))
    head = int(rng.choice([n // 3, min(4 * factor, n // 3)]))
    m = n - 2 * head
    a = int(np.clip(rng.normal(factor + 1, config.sigma), 2, 2 * factor))
    low, high = int(head + (m - 1) * a / 2), int(a * n / 2 - head - 1)
    end = int(rng.integers(low, max(low, high) + 1))
    middle, tail = np.arange(end - m + 1, end + 1), np.arange(head)
    text = middle if end < size - head else np.arange(size - head - m, size - head)
    positions = np.concatenate([np.arange(head), middle, tail + factor * n - head])
    return Stretches(np.concatenate([np.arange(head), text, tail + size - head]), positions)


class SkipRows:
    """The rows of a source's documents, epoch after epoch; row i is a function of the seed and i alone."""

    def __init__(self, tokens: Tokens, documents: np.ndarray, seq_len: int, config: SkipConfig, seed: tuple[int, ...]):
        """documents: which an epoch has, by number; one that is there twice is read twice, each time anew."""
        self.tokens, self.documents, self.seq_len, self.config, self.seed = tokens, documents, seq_len, config, seed
        self.longest = int(tokens.sizes[documents].max())
        self.starts = np.concatenate([[0], tokens.ends[:-1]])
        self._order: Callable[[int], np.ndarray] = lru_cache(maxsize=2)(self._make_order)

    def row(self, index: int, step: int) -> dict[str, np.ndarray]:
        epoch, at = divmod(index, len(self.documents))
        place = int(self._order(epoch)[at])  # in `documents`: of a document that is there twice, each has its own draw
        document = int(self.documents[place])
        start, stop = int(self.starts[document]), int(self.tokens.ends[document])
        draw = pose if self.config.kind == "pose" else cream
        rng = np.random.default_rng((*self.seed, epoch, 2, place))
        stretches = draw(rng, stop - start, self.seq_len, self.config)
        answers = None if self.tokens.answers is None else self.tokens.answers[start:stop]
        return skipped_row(self.tokens.tokens[start:stop], stretches, self.seq_len, answers)

    def describe(self, index: int) -> str:
        epoch, at = divmod(index, len(self.documents))
        return self.tokens.describe([int(self.documents[self._order(epoch)[at]])])

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch, 0)).permutation(len(self.documents))


def skipped_row(
    document: np.ndarray, stretches: Stretches, seq_len: int, answers: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns a row of the document's stretches; the target of each token is its successor in the document.

    answers: bool, which of the document's tokens the loss is on; None: on all.
    """
    found, n = empty_row(seq_len), len(stretches.index)
    follows = stretches.index + 1
    found["tokens"][:n] = document[stretches.index]
    found["targets"][:n] = np.where(follows < len(document), document[np.minimum(follows, len(document) - 1)], 0)
    found["weights"][:n] = follows < len(document)
    if answers is not None:
        found["weights"][:n] *= answers[np.minimum(follows, len(document) - 1)]
    found["positions"][:n] = stretches.positions
    found["segments"][:n] = 1
    return found
