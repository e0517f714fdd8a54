"""Configs: small Python files that return a ConfigDict, built strictly into frozen, hashable dataclasses.

A config file has one function, `get_config()` (optionally with one string argument). Every key that it returns must be
a field: an unknown key, a missing one or a wrong type raises here, before any device is used.
"""

import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """The user's request is wrong: a key, a value, a file. The command line exits with status 2."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The range of a number, as metadata of Annotated: low <= x <= high, or low < x with `above`; x must be finite,
    unless `infinite` is set."""

    low: int | float
    above: bool = False
    many: bool = False  # a list of such numbers
    high: int | float = math.inf
    infinite: bool = False  # infinity is allowed, as for "no window"

    def __contains__(self, value: int | float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value <= self.high if self.infinite or self.high < math.inf else value < math.inf
        )

    def __str__(self) -> str:
        low, high = (f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"{'>' if self.above else '>='} {low}" + ("" if self.high == math.inf else f" and <= {high}")


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def build(cls: type[T], values: Mapping[str, Any] | Any, where: str = "config") -> T:
    """Returns the frozen dataclass `cls` made from nested mappings.

    Args:
      cls: a dataclass; its field types are those of `coerce`.
      values: a mapping (ConfigDict or dict), or an instance of `cls`, which is returned as it is.
      where: the key that `values` are at, for errors.

    Raises:
      ConfigError: unknown or missing keys, or values of the wrong type; the message names the key.
    """
    if isinstance(values, cls):
        return values
    if not _is_mapping(values):
        raise ConfigError(f"{where}: expected the keys of {cls.__name__}, got {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    hints = _hints(cls)
    given = {str(k): values[k] for k in values}
    unknown = [k for k in given if k not in fields]
    required = [k for k, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [k for k in required if k not in given]
    if unknown or missing:
        parts = [f"unknown {unknown}"] if unknown else []
        parts += [f"missing {missing}"] if missing else []
        hint = nearest(unknown[0], [k for k in fields if k not in given] or list(fields)) if unknown else ""
        raise ConfigError(f"{where}: {', '.join(parts)}; {cls.__name__} takes {', '.join(fields)}.{hint}")
    return cls(**{k: coerce(hints[k], v, f"{where}.{k}") for k, v in given.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or type(value).__name__ in ("ConfigDict", "FrozenConfigDict")


def coerce(hint: Any, value: Any, where: str) -> Any:
    """Returns a config's value converted to its annotation: whole numbers to int, numbers to float, lists to tuples.

    Args:
      hint: bool, int, float, str, Literal, a dataclass, Mapping, tuple, a union of these, Any; a number's range is
        Annotated[float, Bound(...)], and Annotated[..., Bound(..., many=True)] a list of numbers, or of equally long
        lists of them, which becomes a float64 array.
      where: the value's key, for errors.

    Raises:
      ConfigError: naming the key, what was got and what is allowed. NaN is rejected.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return freeze(value)
    if origin is Annotated:
        kind, bound = args
        if bound.many:
            return _numbers(value, dataclasses.replace(bound, many=False), where)
        value = coerce(kind, value, where)
        if isinstance(value, int | float) and value not in bound:
            raise ConfigError(f"{where}: must be {bound}{' and finite' * (value == math.inf)}, got {value:g}.")
        return value
    if hint in (int, float):
        return _number(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is Literal:
        if value not in args:
            hint_text = nearest(value, [str(a) for a in args]) if isinstance(value, str) else ""
            raise ConfigError(f"{where}: got {value!r}; allowed are {', '.join(map(repr, args))}.{hint_text}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
            raise ConfigError(f"{where}: expected a list, got {value!r}.")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(coerce(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}: {value!r}.")
        return tuple(coerce(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin in (collections.abc.Mapping, dict):
        if not _is_mapping(value):
            raise ConfigError(f"{where}: expected keys and values, got {value!r}.")
        return freeze(value)
    if not isinstance(value, hint if isinstance(hint, type) else origin or object):
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}.")
    return value


def check_fields(instance: Any, where: str) -> None:
    """Raises ConfigError for a field that `coerce` rejects, in a dataclass that was made directly, not by `build`."""
    for name, hint in _hints(type(instance)).items():
        coerce(hint, getattr(instance, name), f"{where}.{name}")


def _number(kind: type, value: Any, where: str) -> int | float:
    number: Any = value
    with contextlib.suppress(OverflowError):  # an int too large for a float
        if isinstance(value, numbers.Real) and not isinstance(value, bool):  # numpy's too
            if kind is float and not math.isnan(number):
                return float(number)
            if kind is int and math.isfinite(number) and int(number) == number:
                return int(number)
    raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r:.60}.")


def _numbers(value: Any, bound: Bound, where: str) -> Any:
    import numpy as np  # here, so that help and most errors do not need it

    def is_list(x):
        return isinstance(x, Sequence | np.ndarray) and not isinstance(x, str) and len(x) > 0

    if not is_list(value):
        raise ConfigError(f"{where}: expected a list of numbers, got {value!r}.")
    if is_list(value[0]):
        rows = [_numbers(v, bound, f"{where}[{i}]") for i, v in enumerate(value)]
        if {row.shape for row in rows} != {rows[0].shape} or rows[0].ndim > 1:
            raise ConfigError(f"{where}: expected lists of one length, got {[row.shape[0] for row in rows]}.")
        return np.stack(rows)
    return np.array([coerce(Annotated[float, bound], v, f"{where}[{i}]") for i, v in enumerate(value)], np.float64)


def _coerce_union(args: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    # An exact type wins, so that 1 stays an int under `int | float`.
    for arg in sorted((a for a in args if a is not type(None)), key=lambda a: a is not type(value)):
        try:
            return coerce(arg, value, where)
        except ConfigError as e:
            errors.append(str(e))
    raise ConfigError(errors[0])


class FrozenDict(Mapping):
    """A hashable mapping, for parts of a config that a dataclass does not describe."""

    def __init__(self, items: Any):
        self._items = {k: freeze(items[k]) for k in items}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def freeze(value: Any) -> Any:
    """Returns `value` with every mapping in it as a FrozenDict and every list as a tuple, so that it is hashable."""
    if _is_mapping(value):
        return value if isinstance(value, FrozenDict) else FrozenDict(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    return value


def to_dict(value: Any) -> Any:
    """Returns a built config as data for `json.dump`: dataclasses and mappings as dicts, tuples as lists, functions by
    their dotted name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if _is_mapping(value):
        items: Any = value
        return {str(k): to_dict(items[k]) for k in items}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def describe(function: Callable) -> str:
    """Returns the keyword-only parameters of a function as text: `factor: float, beta_fast: float = 32.0`."""
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    parts = []
    for p in keywords:
        default = "" if p.default is p.empty else f" = {p.default!r}"
        parts.append(f"{p.name}: {_type_name(p.annotation)}{default}")
    return ", ".join(parts) or "no parameters"


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        # A parameter annotated as a number or an array (which may be traced) is a float in a config.
        if typing.get_origin(args[0]) not in (typing.Union, types.UnionType):
            return _type_name(args[0])
        return "list[float]" if getattr(args[1], "many", False) else "float"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in args)
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin is not None and args:
        return f"list[{_type_name(args[0])}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
