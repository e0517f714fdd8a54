"""Tasks x lengths -> rows, one row per example; independent of what a task asks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from giraffe_jax import evals
from giraffe_jax.evals import stats

TOKENS_PER_BATCH = 8192


def evaluate(
    lm: Any,
    tasks: Sequence[Any],
    encoding_for: Callable[[int], Any],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    variant: str = "",
    skip: Callable[[str, int], bool] = lambda task, length: False,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of every task at every length, in order, as soon as their batch is done.

    Args:
      lm: an `inference.LM`.
      tasks: task dataclasses or mappings with `name`.
      encoding_for: length in tokens -> Encoding bound for it (`positions.bind(..., length=length)`), without positions.
      tokens_per_batch: tokens in one forward pass, which limits the rows per batch to this over the length.
      variant: copied to every row.
      skip: (task label, length) -> whether to skip that cell.

    Raises:
      ConfigError: a task is wrong, or two have the same label.
    """
    built = [evals.build(task, f"tasks[{i}]") for i, task in enumerate(tasks)]
    check_labels(built)
    for task in built:
        module = evals.module(task.name)
        for length in task.lengths:
            if skip(evals.label(task), length):
                continue
            head = {"variant": variant, "task": evals.label(task), "length": length}
            for row in module.rows(task, lm, length, encoding_for(length), tokens_per_batch=tokens_per_batch):
                yield head | row


def check_labels(tasks: Sequence[Any]) -> None:
    """Raises ConfigError if two tasks would write rows under the same name."""
    from giraffe_jax.config import ConfigError

    labels = [evals.label(task) for task in tasks]
    for name in labels:
        if labels.count(name) > 1:
            raise ConfigError(f"tasks: {labels.count(name)} are called {name!r}; give each its own `label`.")


def summary(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, stats.Estimate]]:
    """Returns (task, length) -> metric -> Estimate for the rows of one variant: ppl, shares of right answers, means."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["task"], row["length"]), []).append(row)
    return {cell: _summary(cell_rows) for cell, cell_rows in cells.items()}


def _summary(rows: list[dict[str, Any]]) -> dict[str, stats.Estimate]:
    estimates = {"ppl": stats.perplexity(rows)} if "nll" in rows[0]["metrics"] else {}
    for name, metric in evals.metrics_of(evals.names()).items():
        if name in rows[0]["metrics"]:
            estimates[name] = stats.share(rows, name) if metric.share else stats.mean(rows, name)
    return estimates
