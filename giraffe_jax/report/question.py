"""An example question that one variant answers right and another wrong, to show what the scores are made of."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from giraffe_jax.report import metrics
from giraffe_jax.report.scores import Results, Row
from giraffe_jax.report.tables import task_name

MOST = 400  # most characters of a text to show


@dataclass(frozen=True)
class Question:
    """A question of a task, with the row of a variant that answers it right and of one that answers it wrong."""

    task: str
    length: int
    right: Row
    wrong: Row


def find(results: Results) -> Question | None:
    """Returns the first such question, at the longest length that has one, with the first right and wrong variants."""
    order = {variant: i for i, variant in enumerate(results.variants)}
    for length in sorted({row["length"] for row in results.rows}, reverse=True):
        for task in results.tasks:
            rows = results.of(task)
            metric = next((m for m in metrics.of(rows) if m.share and m.name != "teacher"), None)
            if metric is None:  # teacher-forced answers have no output to show
                continue
            shown = [r for r in rows if r["length"] == length and "question" in r and isinstance(r.get("output"), str)]
            by_prompt: dict[tuple[object, ...], list[Row]] = {}
            for row in sorted(shown, key=lambda row: order[row["variant"]]):
                by_prompt.setdefault((row.get("prompt"), row.get("example")), []).append(row)
            for key in sorted(by_prompt, key=str):
                right = _first(by_prompt[key], metric.name, 1)
                wrong = _first(by_prompt[key], metric.name, 0)
                if right is not None and wrong is not None:
                    return Question(task, length, right, wrong)
    return None


def _first(rows: Sequence[Row], metric: str, value: int) -> Row | None:
    return next((row for row in rows if row["metrics"].get(metric) == value), None)


def as_html(results: Results) -> str:
    """Returns an HTML section with the question, the expected answer and both outputs; empty if there is none."""
    question = find(results)
    if question is None:
        return ""
    expected = question.right.get("expected")
    texts = expected if isinstance(expected, list) else [] if expected is None else [expected]
    entries = [
        ("the prompt ends", _end(str(question.right["question"]))),
        ("expected", _begin(", ".join(str(text) for text in texts))),
        (f"{question.right['variant']}, right", _begin(question.right["output"])),
        (f"{question.wrong['variant']}, wrong", _begin(question.wrong["output"])),
    ]
    listing = "".join(f"<dt>{html.escape(name)}</dt><dd><pre>{html.escape(text)}</pre></dd>" for name, text in entries)
    head = html.escape(f"{task_name(question.task)} at {question.length:,} tokens")
    return (
        f"<section>\n<h2>One question, answered right and wrong</h2>\n<p class='how'>{head}: the first question at the "
        f"longest length that one variant answers right and another wrong.</p>\n<dl>{listing}</dl>\n</section>"
    )


def _begin(text: str) -> str:
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def _end(text: str) -> str:
    return text if len(text) <= MOST else "…" + text[-(MOST - 1) :]
