"""PoSE and CREAM rows: separated stretches of one document, each with the text that belongs to its positions.

Zhu et al., "PoSE", arXiv:2309.10400, dwzhu-pku/PoSE, src/train_pose.py; Wu et al., "CREAM", arXiv:2406.07138,
bigai-nlco/CREAM, src/train.py. The position methods `pose` and `cream` shift the positions of contiguous text inside
the training step. Here the text skips too: later stretches are cut from later in the document. Rows carry their own
positions, so neither method may be in the model's list. Each document gives one row per epoch, which is one segment.

Unlike in the released code, the target of a stretch's last token is the token that follows it in the document, not the
first token of the next stretch, and CREAM's middle never overlaps its tail.
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
    """Rows of separated stretches; combine with a frequency method of factor target_len / seq_len."""

    kind: Literal["pose", "cream"]  # Which method places the stretches.
    target_len: Length  # Length to train for, in tokens. For "cream" a multiple of seq_len.
    # Of "pose": the second stretch ends within the first `reach` windows (of seq_len tokens) of the document.
    reach: Annotated[int, Bound(1)] = 5
    sigma: Annotated[float, Bound(0.0, above=True)] = 3.0  # Standard deviation of the Gaussian of "cream".


class Stretches(NamedTuple):
    """Which tokens of a document a row holds, and the positions they are read at."""

    index: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]


def pose(rng: np.random.Generator, size: int, seq_len: int, config: SkipConfig) -> Stretches:
    """Returns two stretches of n = min(size, seq_len) tokens in all, for a document of `size` tokens.

    The first is the document's first r ~ U{1 .. (n + 1) // 2} tokens. The second, of n - r, ends at token
    U{n .. min(size, reach * seq_len)} of the document, and its positions r .. n - 1 are shifted by
    U{0 .. target_len - n}. The skips in text and in positions are drawn independently.
    """
    n = min(size, seq_len)
    first = int(rng.integers(1, (n + 1) // 2 + 1))
    end = int(rng.integers(n, min(size, config.reach * seq_len) + 1))
    skip = int(rng.integers(0, config.target_len - n + 1))
    rest = np.arange(first, n)
    return Stretches(np.append(np.arange(first), rest + end - n), np.append(np.arange(first), rest + skip))


def cream(rng: np.random.Generator, size: int, seq_len: int, config: SkipConfig) -> Stretches:
    """Returns a head at positions 0 .. h - 1, a middle whose end is drawn as in the method `cream`, and a tail of h.

    The tail's positions are the last of the target length, its text the document's end. The middle's text is at its
    positions in the document, or right before the tail if the document is too short for that. Documents of one or two
    tokens are not split.
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
        """documents: indices of an epoch's documents; each repeat of an index draws its own stretches."""
        self.tokens, self.documents, self.seq_len, self.config, self.seed = tokens, documents, seq_len, config, seed
        self.longest = int(tokens.sizes[documents].max())
        self.starts = np.concatenate([[0], tokens.ends[:-1]])
        self._order: Callable[[int], np.ndarray] = lru_cache(maxsize=2)(self._make_order)

    def row(self, index: int, step: int) -> dict[str, np.ndarray]:
        """Returns row `index` of the endless list, arrays [seq_len]."""
        epoch, at = divmod(index, len(self.documents))
        place = int(self._order(epoch)[at])  # in `documents`: seeds the draw, so that repeats of a document differ
        document = int(self.documents[place])
        start, stop = int(self.starts[document]), int(self.tokens.ends[document])
        draw = pose if self.config.kind == "pose" else cream
        rng = np.random.default_rng((*self.seed, epoch, 2, place))
        stretches = draw(rng, stop - start, self.seq_len, self.config)
        answers = None if self.tokens.answers is None else self.tokens.answers[start:stop]
        return skipped_row(self.tokens.tokens[start:stop], stretches, self.seq_len, answers)

    def describe(self, index: int) -> str:
        """Returns the document that row `index` holds, in words."""
        epoch, at = divmod(index, len(self.documents))
        return self.tokens.describe([int(self.documents[self._order(epoch)[at]])])

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch, 0)).permutation(len(self.documents))


def skipped_row(
    document: np.ndarray, stretches: Stretches, seq_len: int, answers: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns a row of stretches, arrays [seq_len]; the target of a token is its successor in the document.

    document: tokens. answers: bool, a mask of the document's tokens that the loss is on; None: on all.
    """
    row, n = empty_row(seq_len), len(stretches.index)
    follows = stretches.index + 1
    row["tokens"][:n] = document[stretches.index]
    row["targets"][:n] = np.where(follows < len(document), document[np.minimum(follows, len(document) - 1)], 0)
    row["weights"][:n] = follows < len(document)
    if answers is not None:
        row["weights"][:n] *= answers[np.minimum(follows, len(document) - 1)]
    row["positions"][:n] = stretches.positions
    row["segments"][:n] = 1
    return row
