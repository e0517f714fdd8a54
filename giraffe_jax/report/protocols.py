"""Describes what was scored, from the rows: a sentence per protocol, and the numbers of windows, documents and tokens.

A protocol's name says what was requested; if only whole first windows were scored, the page says that instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROTOCOLS = {
    "aligned": "the same target tokens at every length, each window ending at the same places in its text: only how "
    "much text comes before them differs",
    "strided": "windows of each length moved along the text by a stride; a window scores its last stride of tokens, "
    "the first window of a text all it has",
    "truncated": "the first tokens of every document, up to each length, in one pass, all of them scored",
    "longppl": "only the tokens that another model predicts much better from the whole text than from its last few "
    "thousand tokens",
    "chunked": "windows of each length side by side, all their tokens scored, also the first ones, which have little "
    "text before them",
}
WHOLE = "the first window of each document, all its tokens scored, also the first ones, which have little text before"


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a paragraph on what a task's loss rows contain; empty if they do not record it."""
    protocols = sorted({str(row["protocol"]) for row in rows if row.get("protocol")})
    sentences = []
    for protocol in protocols:
        protocol_rows = [row for row in rows if row.get("protocol") == protocol]
        text = PROTOCOLS.get(protocol, "")
        if protocol == "strided" and all(row.get("window") == 0 for row in protocol_rows):
            sentences.append(f"Scored: {WHOLE} (the protocol asked for, {protocol}, would have moved on from there).")
        else:
            sentences.append(f"Protocol {protocol}" + (f": {text}." if text else "."))
    return " ".join([*sentences, counts(rows)] if sentences else [counts(rows)]).strip()


def counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence on the windows, documents and tokens that each variant was scored on, per length if they
    differ."""
    first = rows[0]["variant"] if rows else None
    per: dict[int, tuple[int, int, int]] = {}
    for length in sorted({row["length"] for row in rows}):
        length_rows = [row for row in rows if row["variant"] == first and row["length"] == length]
        documents = {row["document"] for row in length_rows if row.get("document") is not None}
        per[length] = len(length_rows), len(documents), sum(row["metrics"]["tokens"] for row in length_rows)
    if not any(windows for windows, _, _ in per.values()):
        return ""
    if len(set(per.values())) == 1:
        return f"Each variant at each length: {_said(*next(iter(per.values())))}."
    return "Each variant: " + "; ".join(f"at {length:,}, {_said(*seen)}" for length, seen in per.items()) + "."


def _said(windows: int, documents: int, tokens: int) -> str:
    of = f" of {documents:,} document{'s' * (documents != 1)}" if documents else ""
    return f"{windows:,} window{'s' * (windows != 1)}{of}, {tokens:,} tokens scored"
