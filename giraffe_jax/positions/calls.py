"""Position methods in a config: the types of their parameters, look-up by name, checks of their arguments."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np

from giraffe_jax.config import Bound, ConfigError, coerce, describe, nearest
from giraffe_jax.positions import own
from giraffe_jax.positions.encoding import Encoding

Scaling = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Nested:
    """Metadata of a parameter that is itself a list of lists of methods."""


# Configs hold floats; a method may also be called with float64 arrays while binding, or traced ones inside a step.
Number = float | np.ndarray | jax.Array
Factor = Annotated[Number, Bound(1.0)]
Positive = Annotated[Number, Bound(0.0, above=True)]
Extent = Annotated[Number, Bound(0.0, above=True, infinite=True)]  # a window, a base, ...; infinity turns it off
NonNegative = Annotated[Number, Bound(0.0)]
Fraction = Annotated[Number, Bound(0.0, above=True, high=1.0)]
Positives = Annotated[Sequence[float] | np.ndarray | jax.Array, Bound(0.0, above=True, many=True)]
Factors = Annotated[Sequence[float] | np.ndarray | jax.Array, Bound(1.0, many=True)]
Choices = Annotated[Sequence[Any], Nested()]
Divisors = Annotated[Sequence[float] | np.ndarray | jax.Array, Bound(0.0, above=True, many=True)]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("numbers",), meta_fields=("function", "choices", "needs")
)
@dataclasses.dataclass(frozen=True)
class Call:
    """A method with its parameters: numbers are traced, choices (bool, int, str, None) are static."""

    function: Callable
    numbers: dict[str, Any]
    choices: tuple[tuple[str, Any], ...]
    needs: tuple[str, ...]

    def __call__(self, encoding: Encoding) -> Encoding:
        """Returns the encoding after the method."""
        return self.function(encoding, **self.numbers, **dict(self.choices))


def scale_queries(e: Encoding, scale) -> Encoding:
    """Returns the encoding with each query's logits multiplied by `scale`, [B T] or a scalar, and by earlier scales."""
    scale = scale + 0 * e.positions
    return e.replace(query_scale=scale if e.query_scale is None else e.query_scale * scale)


def names() -> list[str]:
    """Returns the names of the catalogued methods: the files of positions/methods."""
    from giraffe_jax.positions import methods

    return sorted(m.name for m in pkgutil.iter_modules(methods.__path__))


def lookup(name: str | Callable, where: str = "positions") -> Callable:
    """Returns the method for a catalogue name or for a dotted path to a function; a function is returned as it is.

    Raises:
      ConfigError: the name is unknown, or what it names is not a method.
    """
    if callable(name):
        return own.check_form(name, where)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: 'name' must be a method's name or a function, got {name!r}.")
    if "." not in name:
        if name not in names():
            hint = own.meant(name) or nearest(name, names())
            raise ConfigError(f"{where}: unknown method {name!r}; there are {', '.join(names())}.{hint}")
        return getattr(importlib.import_module(f"giraffe_jax.positions.methods.{name}"), name)
    return own.find(name, where)


def check(scaling: Any, where: str = "model.positions") -> tuple[Call, ...]:
    """Returns the calls of a config's list of methods.

    Args:
      scaling: `[dict(name="linear", factor=4.0), ...]`, applied left to right; empty for plain RoPE.
      where: the list's name in errors.

    Raises:
      ConfigError: a parameter is unknown, missing or out of range; names the item and what the method takes.
    """
    if isinstance(scaling, Mapping) or not isinstance(scaling, Sequence) or isinstance(scaling, str):
        raise ConfigError(f"{where}: expected a list of dicts like dict(name='linear', factor=4.0), got {scaling!r}.")
    return tuple(_check_one(item, f"{where}[{i}]") for i, item in enumerate(scaling))


def _check_one(item: Mapping[str, Any], where: str) -> Call:
    if not isinstance(item, Mapping) or "name" not in item:
        raise ConfigError(f"{where}: expected a dict with 'name', got {item!r}.")
    function = lookup(item["name"], where)
    where = f"{where} ({item['name'] if isinstance(item['name'], str) else own.label(function)})"
    given = {k: v for k, v in item.items() if k != "name"}
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    allowed = [p.name for p in keywords]
    unknown = [k for k in given if k not in allowed]
    missing = [p.name for p in keywords if p.default is p.empty and p.name not in given]
    if unknown or missing:
        parts = [f"unknown {unknown}"] if unknown else []
        parts += [f"missing {missing}"] if missing else []
        hint = nearest(unknown[0], allowed) if unknown else ""
        raise ConfigError(f"{where}: {', '.join(parts)}; it takes {describe(function)}.{hint}")
    hints = typing.get_type_hints(function, include_extras=True)
    values = {p.name: p.default for p in keywords} | given
    values = {
        k: _choices(v, f"{where}.{k}") if _is_nested(hints.get(k)) else coerce(hints.get(k, Any), v, f"{where}.{k}")
        for k, v in values.items()
    }
    numbers = {k: v for k, v in values.items() if isinstance(v, float | np.ndarray) or _is_nested(hints.get(k))}
    choices = tuple((k, v) for k, v in values.items() if k not in numbers)
    needs = getattr(sys.modules.get(function.__module__), "NEEDS", ())
    return Call(function, numbers, choices, tuple(needs))


def _is_nested(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated and isinstance(typing.get_args(hint)[1], Nested)


def _choices(value: Any, where: str) -> tuple[tuple[Call, ...], ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or len(value) < 2:
        raise ConfigError(f"{where}: expected at least two lists of methods, got {value!r}.")
    return tuple(check(item, f"{where}[{i}]") for i, item in enumerate(value))
