"""Warnings, before a run, about tasks with too few examples to compare variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from giraffe_jax import evals
from giraffe_jax.evals.metrics import PERPLEXITY
from giraffe_jax.evals.stats import FEWEST
from giraffe_jax.report.paired import counted


def before(tasks: Sequence[Any], tokenizer: Callable[[], Any]) -> list[str]:
    """Returns a sentence for each task with too few documents or examples to tell variants apart.

    Args:
      tasks: built tasks of a config.
      tokenizer: returns the model's tokenizer; called only if documents of sufficient length have to be counted.

    Raises:
      ConfigError: no document is long enough.
    """
    sentences = []
    for i, task in enumerate(tasks):
        key, module, longest = f"config.tasks[{i}]", evals.module(task.name), max(task.lengths)
        if PERPLEXITY in module.METRICS or (task.name == "copying" and task.documents):
            examples = module.examples(task, tokenizer(), longest)
            n = len({example.document for example in examples})
            amount = counted(n, "document") + f" ({len(examples)} windows of them)" * (len(examples) > n)
            cure = f"{FEWEST} documents of {longest:,} tokens or more in {key}.documents"
            cure += f", and {key}.n={FEWEST} or more" if task.n is not None and task.n < FEWEST else ""
        else:
            n, amount, cure = task.n, counted(task.n, "example") + " a length", f"{key}.n={FEWEST} or more"
        if n < FEWEST:
            verb = "is" if n == 1 else "are"
            sentences.append(f"{evals.label(task)}: {amount} {verb} too few to tell variants apart; it takes {cure}.")
    return sentences
