"""Documents -> windows of a fixed length: which stretch of which document stands where.

A plan is a list of spans of one long token array, grouped into windows. Both ways of packing make plans and nothing
else; `window` turns a window of either into arrays. Every token of each document read is in exactly one window.
"""

import bisect
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from giraffe_jax.config import Bound

Packing = Literal["concat", "document"]
Length = Annotated[int, Bound(1, high=2**24)]  # tokens; positions are float32, which counts so far


class Plan(NamedTuple):
    """Spans [start, start + size) of the source's tokens; window w holds the spans first[w] to first[w + 1] - 1.

    `stop`: where the document of each span ends, so that the last token of a span knows whether it has a successor.
    """

    start: Int[np.ndarray, " spans"]
    size: Int[np.ndarray, " spans"]
    stop: Int[np.ndarray, " spans"]
    first: Int[np.ndarray, " windows+1"]

    @property
    def num_windows(self) -> int:
        return len(self.first) - 1


def plan(ends: Int[np.ndarray, " documents"], order: Int[np.ndarray, " read"], seq_len: int, how: Packing) -> Plan:
    """The windows of `seq_len` tokens that hold documents (ending at `ends`) in the given order, which may lack some
    of them and have others several times.

    concat: documents end to end, cut every `seq_len` tokens wherever that falls; only the last window has padding.
    document: a document is cut only where it is longer than a window, and its pieces stand where they fit best.
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

    Positions restart and segments (1, 2, ...) count up with each span; padding has segment 0. A target is the next
    token of the same document, even where the window ends before it; where the document ends the weight is 0. With
    `answers`, the weight is 1 only where the target is one.
    """
    row = empty_row(seq_len)
    at = 0
    for segment, span in enumerate(range(int(plan_.first[index]), int(plan_.first[index + 1])), 1):
        start, size, stop = int(plan_.start[span]), int(plan_.size[span]), int(plan_.stop[span])
        here = slice(at, at + size)
        known = min(size, stop - start - 1)  # tokens of the span that have a successor in their document
        row["tokens"][here] = tokens[start : start + size]
        row["targets"][at : at + known] = tokens[start + 1 : start + 1 + known]
        row["weights"][at : at + known] = 1 if answers is None else answers[start + 1 : start + 1 + known]
        row["positions"][here] = np.arange(size)
        row["segments"][here] = segment
        at += size
    return row


def across_documents(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The row as one segment, whose positions are places in the row; padding, tokens and loss stay what they are."""
    real = row["segments"] > 0
    positions = np.where(real, np.arange(len(real)), 0).astype(np.float32)
    return row | {"segments": real.astype(np.int32), "positions": positions}


def empty_row(seq_len: int) -> dict[str, np.ndarray]:
    """A row that is all padding."""
    integers = {name: np.zeros(seq_len, np.int32) for name in ("tokens", "targets", "segments")}
    return integers | {name: np.zeros(seq_len, np.float32) for name in ("weights", "positions")}
