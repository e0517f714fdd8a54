"""What each metric is: its title, how it is averaged and compared, which way is better, and how it was scored.

A metric that is not declared is shown as its mean and never ranked, unless it is 0 or 1 in every row: then it is a
share of right answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["perplexity", "share", "nll", "mean"]


@dataclass(frozen=True)
class Metric:
    """A metric of rows. `better` is None where values are not ranked."""

    name: str
    title: str
    kind: Kind
    better: Literal["high", "low"] | None
    scored: str = ""

    @property
    def share(self) -> bool:
        return self.kind == "share"


PERPLEXITY = Metric("perplexity", "perplexity", "perplexity", "low")
DECLARED = {
    metric.name: metric
    for metric in (
        PERPLEXITY,
        Metric(
            "teacher", "answers right, teacher-forced", "share", "high",
            "Teacher-forced: an answer counts when each of its tokens is the most likely one after those before it.",
        ),
        Metric(
            "generate", "answers right, generated", "share", "high",
            "Generated: greedy decoding; the first number in the output must be the answer.",
        ),
        Metric(
            "generate_last", "answers right, generated, last number", "share", "high",
            "Generated: greedy decoding; the last number in the output must be the answer.",
        ),
        Metric("answer_nll", "loss on the answer, nats a token", "nll", "low"),
    )
}  # fmt: skip


def of(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The metrics of a task's rows, the one that headlines use first: perplexity, else shares before means."""
    if rows and all("nll" in row["metrics"] and "tokens" in row["metrics"] for row in rows):
        return [PERPLEXITY]
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found = [DECLARED.get(name) or _undeclared(name, rows) for name in names]
    return sorted(found, key=lambda metric: (not metric.share, metric.share and metric.name != "teacher"))


def _undeclared(name: str, rows: Sequence[Mapping[str, Any]]) -> Metric:
    values = [row["metrics"].get(name) for row in rows]
    known = [value for value in values if value is not None]
    title = name.replace("_", " ")
    if known and all(value in (0, 1) for value in known):
        return Metric(name, title, "share", "high")
    return Metric(name, title, "mean", None)
