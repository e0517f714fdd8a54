"""Own tasks: a module in any file, named in a config by its dataclass's dotted path, `dict(name="echo.Echo", ...)`.

It is found beside the config, in the current folder, in its project, or installed, as own position methods are, and has
what a task of the catalogue has: a frozen dataclass, METRICS and `rows` (see `giraffe_jax.evals`).
"""

import dataclasses
from types import ModuleType
from typing import Any

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.config.dotted import module_of
from giraffe_jax.evals.metrics import Metric

FIELDS = ("lengths", "name", "label")  # of any task's dataclass


def find(name: str, where: str) -> tuple[ModuleType, Any]:
    """Returns the module of an own task and its dataclass.

    Raises:
      ConfigError: no such module or class, a module that fails, or one without what a task has.
    """
    path, _, attribute = name.rpartition(".")
    module = module_of(name, where)
    task = getattr(module, attribute, None)
    if not (isinstance(task, type) and dataclasses.is_dataclass(task)):
        there = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == path]
        raise ConfigError(
            f"{where}: {module.__file__} has no dataclass {attribute!r}; its classes are {', '.join(there) or 'none'}."
            f"{nearest(attribute, there)}"
        )
    missing = [field for field in FIELDS if field not in {f.name for f in dataclasses.fields(task)}]
    if missing:
        raise ConfigError(f"{where}: {name}: has no field {missing[0]!r}; every task has {', '.join(FIELDS)}.")
    if not isinstance(getattr(task, "VERSION", None), int):
        raise ConfigError(f"{where}: {name}: has no VERSION; write VERSION: ClassVar[int] = 1 in it.")
    metrics = getattr(module, "METRICS", None)
    if not (isinstance(metrics, tuple) and metrics and all(isinstance(metric, Metric) for metric in metrics)):
        raise ConfigError(
            f"{where}: {path}: METRICS must be a tuple of giraffe_jax.evals.metrics.Metric, got {metrics!r}."
        )
    if not callable(getattr(module, "rows", None)):
        raise ConfigError(f"{where}: {path}: has no function rows(task, lm, length, encoding, *, tokens_per_batch).")
    return module, task
