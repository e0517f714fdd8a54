"""The metrics of a task's rows, with their properties as the task modules declare them.

A metric that no task declares is shown as a mean and never ranked; if it is 0 or 1 in every row, it counts as a share
of right answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from giraffe_jax import evals
from giraffe_jax.evals.metrics import PERPLEXITY, Metric

__all__ = ["PERPLEXITY", "Metric", "of", "unit"]


def of(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Returns the metrics of a task's rows, the main one first: perplexity, or shares before means."""
    if rows and all("nll" in row["metrics"] and "tokens" in row["metrics"] for row in rows):
        return [PERPLEXITY]
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    metrics = [_metric(name, rows) for name in names]
    return sorted(metrics, key=lambda metric: (not metric.share, metric.share and metric.name != "teacher"))


def unit(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what n counts for a task's rows, the independent units: documents if rows name them, not windows."""
    if rows and all(row.get("document") is not None for row in rows):
        return "document"
    if of(rows) == [PERPLEXITY]:
        return "window"
    return "question" if any("question" in row for row in rows) else "example"


def _metric(name: str, rows: Sequence[Mapping[str, Any]]) -> Metric:
    values = [row["metrics"].get(name) for row in rows]
    known = [value for value in values if value is not None]
    binary = bool(known) and all(value in (0, 1) for value in known)
    declared = _declared().get(name)
    if declared is None:
        title = name.replace("_", " ")
        return Metric(name, title, "share", "high") if binary else Metric(name, title, "mean", None)
    # If every fraction is 0 or 1 (each question has one answer), it is a share, and is tested as one.
    return replace(declared, kind="share") if binary and declared.kind == "fraction" else declared


@functools.cache
def _declared() -> dict[str, Metric]:
    return evals.metrics_of(evals.names())
