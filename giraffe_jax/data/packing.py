"""Packing: documents -> windows of a fixed length.

A plan is a list of spans of one long token array, grouped into windows. Both ways of packing only make a plan;
`window` turns one of its windows into arrays. Every token of each document read is in exactly one window.
"""

import bisect
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from giraffe_jax.config import Bound

Packing = Literal["concat", "document"]
Length = Annotated[int, Bound(1, high=2**24)]  # tokens; float32, the dtype of positions, is exact up to 2**24


class Plan(NamedTuple):
    """Spans [start, start + size) of the source's tokens; window w holds the spans first[w] to first[w + 1] - 1.

    `stop`: where the document of each span ends: it tells whether the last token of the span has a successor.
    """

    start: Int[np.ndarray, " spans"]
    size: Int[np.ndarray, " spans"]
    stop: Int[np.ndarray, " spans"]
    first: Int[np.ndarray, " windows+1"]

    @property
    def num_windows(self) -> int:
        """The number of windows."""
        return len(self.first) - 1


def plan(ends: Int[np.ndarray, " documents"], order: Int[np.ndarray, " read"], seq_len: int, how: Packing) -> Plan:
    """Returns the windows of `seq_len` tokens into which documents are packed.

    ends: where each document ends in the token array. order: indices of documents, some left out or repeated at will.
    concat: documents are concatenated and cut every `seq_len` tokens; only the last window has padding.
    document: a document is cut only if it is longer than a window; each piece goes where it leaves least room (best
    fit).
    """
    return _concat(ends, order, seq_len) if how == "concat" else _document(ends, order, seq_len)


def _concat(ends: np.ndarray, order: np.ndarray, seq_len: int) -> Plan:
    starts = np.concatenate([[0], ends[:-1]])[order]
    stops = ends[order]
    edges = np.concatenate([[0], np.cumsum(stops - starts)])  # of the documents in the joined stream
    total = int(edges[-1])
    cuts = np.unique(np.concatenate([edges, np.arange(0, total, seq_len)]))
    size = np.diff(cuts)
    document = np.searchsorted(edges, cuts[:-1], side="right") - 1
    start = starts[document] + cuts[:-1] - edges[document]
    first = np.searchsorted(cuts[:-1], np.arange(0, total, seq_len))
    return Plan(start, size, stops[document], np.append(first, len(start)))


def _document(ends: np.ndarray, order: np.ndarray, seq_len: int) -> Plan:
    starts = np.concatenate([[0], ends[:-1]])
    windows: list[list[tuple[int, int, int]]] = []
    open_: list[tuple[int, int]] = []  # (room left, window), sorted: one bisect finds the tightest fit
    for document in order:
        begin, stop = int(starts[document]), int(ends[document])
        for start in range(begin, stop, seq_len):
            size = min(seq_len, stop - start)
            at = bisect.bisect_left(open_, (size, -1))
            if at == len(open_):
                windows.append([(start, size, stop)])
                room, index = seq_len - size, len(windows) - 1
            else:
                room, index = open_.pop(at)
                windows[index].append((start, size, stop))
                room -= size
            if room:
                bisect.insort(open_, (room, index))
    spans = np.asarray([span for window_ in windows for span in window_], np.int64).reshape(-1, 3)
    first = np.concatenate([[0], np.cumsum([len(window_) for window_ in windows])])
    return Plan(spans[:, 0], spans[:, 1], spans[:, 2], first.astype(np.int64))


def window(
    plan_: Plan,
    index: int,
    tokens: Int[np.ndarray, " n"],
    seq_len: int,
    answers: Bool[np.ndarray, " n"] | None = None,
) -> dict[str, np.ndarray]:
    """Window `index` as a row: tokens, targets, segments int32 and weights, positions float32, all [seq_len].

    Each span has its own segment (1, 2, ...) and positions from 0; padding has segment 0. A target is the next token of
    the same document, even if the window ends before it; the last token of a document has weight 0. With `answers`, the
    weight is 1 only where the target is an answer token.
    """
    row = empty_row(seq_len)
    at = 0
    for segment, span in enumerate(range(int(plan_.first[index]), int(plan_.first[index + 1])), 1):
        start, size, stop = int(plan_.start[span]), int(plan_.size[span]), int(plan_.stop[span])
        columns = slice(at, at + size)
        known = min(size, stop - start - 1)  # tokens of the span that have a successor in their document
        row["tokens"][columns] = tokens[start : start + size]
        row["targets"][at : at + known] = tokens[start + 1 : start + 1 + known]
        row["weights"][at : at + known] = 1 if answers is None else answers[start + 1 : start + 1 + known]
        row["positions"][columns] = np.arange(size)
        row["segments"][columns] = segment
        at += size
    return row


def across_documents(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the row as one segment, its positions the indices in the row; padding, tokens and loss are unchanged."""
    real = row["segments"] > 0
    positions = np.where(real, np.arange(len(real)), 0).astype(np.float32)
    return row | {"segments": real.astype(np.int32), "positions": positions}


def empty_row(seq_len: int) -> dict[str, np.ndarray]:
    """A row that is all padding."""
    integers = {name: np.zeros(seq_len, np.int32) for name in ("tokens", "targets", "segments")}
    return integers | {name: np.zeros(seq_len, np.float32) for name in ("weights", "positions")}
