"""Evaluation tasks, one file each in tasks/: a config names a task by its file, and sets the fields of its `Task`.
Your own is a file beside the config, named by the dotted path of its dataclass (own.py).

A task module has `Task` (a frozen dataclass with a field `name`), `METRICS` (the metrics its rows may have, see
`evals.metrics`) and `rows(task, lm, length, encoding, *, tokens_per_batch)`, which yields one row per example. Examples
are a pure function of (task, tokenizer, length), so every model and method sees the same prompts. Imports nothing
heavy: reports use `stats` without JAX.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax import config
from giraffe_jax.evals.metrics import Metric


def names() -> list[str]:
    """Returns the names of the tasks in this folder, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "tasks")]))


def module(name: str) -> Any:
    """Returns the module of a task, of an own one by the dotted path of its dataclass."""
    if "." in name:
        from giraffe_jax.evals import own

        return own.find(name, "name")[0]
    return importlib.import_module(f"{__name__}.tasks.{name}")


def metrics_of(names: Iterable[str]) -> dict[str, Metric]:
    """Returns the metrics that tasks declare, by name. ValueError if two declare the same name differently."""
    metrics: dict[str, Metric] = {}
    for name in names:
        for metric in module(name).METRICS:
            if metrics.setdefault(metric.name, metric) != metric:
                raise ValueError(f"evals.{name}: its metric {metric.name!r} is declared otherwise by another task")
    return metrics


def build(values: Mapping[str, Any] | Any, where: str = "tasks[0]") -> Any:
    """Returns the frozen dataclass of a task from its mapping, `dict(name="passkey", lengths=[512], ...)`.

    ConfigError for a missing or unknown name (naming the nearest), for unknown keys and for wrong types.
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return values
    name = getattr(values, "get", lambda key: None)("name")
    if isinstance(name, str) and "." in name:
        from giraffe_jax.evals import own

        cls = own.find(name, f"{where}.name")[1]
    elif name in names():
        cls = module(name).Task
    else:
        nearest = difflib.get_close_matches(str(name), names(), n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise config.ConfigError(f"{where}.name: got {name!r}; the tasks are {', '.join(names())}.{hint}")
    task = config.build(cls, values, f"{where} ({name})")
    if not task.lengths or min(task.lengths) < 2:
        raise config.ConfigError(f"{where}.lengths: got {task.lengths}; expected token counts of 2 or more.")
    return task


def label(task: Any) -> str:
    """Returns the task's name in rows: its `label` if set (needed for two tasks of one kind), else its `name`."""
    return task.label or task.name
