"""Configs: strictly built frozen dataclasses, the Python files that fill them, and the flags that override keys."""

from giraffe_jax.config.file import load
from giraffe_jax.config.overrides import Table, literal
from giraffe_jax.config.schema import (
    Bound,
    ConfigError,
    FrozenDict,
    build,
    check_fields,
    coerce,
    describe,
    freeze,
    nearest,
    to_dict,
)

__all__ = [
    "Bound",
    "ConfigError",
    "FrozenDict",
    "Table",
    "build",
    "check_fields",
    "coerce",
    "describe",
    "freeze",
    "literal",
    "load",
    "nearest",
    "to_dict",
]
