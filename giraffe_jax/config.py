"""Configs: small Python files that return a ConfigDict, built strictly into frozen, hashable dataclasses.

A config file has one function, `get_config()` (optionally with one string argument), and every key in what it returns
has a reader: an unknown key, a missing one or a wrong type raises here, before any device is touched.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import os
import re
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """The request itself is wrong: a key, a value, a file. The command line answers it with exit status 2."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The range of a number, as the metadata of Annotated; `low` itself is allowed unless `above`, infinity is not."""

    low: int | float
    above: bool = False
    many: bool = False  # a list of such numbers
    high: int | float = math.inf
    infinite: bool = False  # infinity means something too: no window, no cut

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
      where: how the place is called in errors.

    Raises:
      ConfigError: unknown or missing keys, or values of the wrong type, each naming its place.
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
    """Returns a config's value as its annotation wants it: a whole number as int, any number as float, lists as tuples.

    Args:
      hint: bool, int, float, str, Literal, a dataclass, Mapping, tuple, a union of these, Any; a number's range is
        Annotated[float, Bound(...)], and Annotated[..., Bound(..., many=True)] a list of numbers, or of equally long
        lists of them, which becomes a float64 array.
      where: how the place is called in errors.

    Raises:
      ConfigError: naming the place, what was got and what is allowed. NaN is no number.
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
    """Raises ConfigError where a dataclass that was made by hand, not by `build`, has a field that `coerce` refuses."""
    for name, hint in _hints(type(instance)).items():
        coerce(hint, getattr(instance, name), f"{where}.{name}")


def _number(kind: type, value: Any, where: str) -> int | float:
    number: Any = value
    with contextlib.suppress(OverflowError):  # of an int that no float holds
        if isinstance(value, numbers.Real) and not isinstance(value, bool):  # numpy's too
            if kind is float and not math.isnan(number):
                return float(number)
            if kind is int and math.isfinite(number) and int(number) == number:
                return int(number)
    raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r:.60}.")


def _numbers(value: Any, bound: Bound, where: str) -> Any:
    import numpy as np  # when a method has such a list: help and mistakes are answered without it

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
    """Returns `value` with every mapping, list and set in it made hashable."""
    if _is_mapping(value):
        return value if isinstance(value, FrozenDict) else FrozenDict(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    return value


def to_dict(value: Any) -> Any:
    """Returns what `json.dump` can write for a built config: dataclasses and mappings as dicts, tuples as lists."""
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


class Table(dict):
    """A dict whose keys are attributes too: `table.optim.lr`. What `load` returns, and every mapping in it."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        keys = [str(key) for key in self]
        raise AttributeError(f"no key {name!r}; there are {', '.join(keys)}.{nearest(name, keys)}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Returns what the config file's get_config() returns, as nested Tables and lists, with overrides applied in order.

    Args:
      path: `file.py` or `file.py:argument`; a folder means its `config.py`.
      overrides: flags as typed, `--config.KEY=VALUE`. A KEY is like `optim.lr` or `tasks[-1].lengths`, and need not be
        set in the file. A VALUE is what `literal` reads, else a string as typed. A key that is a string in the file
        takes any VALUE as typed, without its quotes if it has them.

    Raises:
      ConfigError: a file that cannot be read or run, naming its line; a flag that leads nowhere in what it returned.
        Whether a key has a reader is for `build` to say.
    """
    flags = [_split_flag(flag) for flag in overrides]
    values = _run_file(str(path))
    # What the file says decides how a text is read, whichever flags come before.
    found = [(flag, keys, _read_value(flag, text, _look_up(values, keys))) for flag, keys, text in flags]
    for flag, keys, value in found:
        _assign(values, flag, keys, _plain(value))
    return values


def literal(text: str) -> Any:
    """Returns what a Python literal says: a number, string, None, list, tuple, dict, `dict(name="yarn", factor=4.0)`.

    True, False and None may be lower case; keys of dicts are strings.

    Raises:
      ValueError: it is no such literal.
      ConfigError: it may be one, but is nested deeper than DEEPEST or has a number of more than 64 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape in a string stays as it is typed
            return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as e:
        if "too many nested" in str(e.msg):
            raise ConfigError(TOO_DEEP) from e
        if "Exceeds the limit" in str(e.msg):
            raise ConfigError(TOO_LARGE) from e
        raise ValueError(f"no Python literal: {_short(text)}.") from e
    except (RecursionError, MemoryError) as e:  # the parser's own limits
        raise ConfigError(TOO_DEEP) from e


DEEPEST = 32  # levels of a value, or of a key, that a flag sets
TOO_DEEP = f"nested more than {DEEPEST} deep."
TOO_LARGE = "a number of more than 64 bits."


def _evaluate(node: ast.expr, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ConfigError(TOO_DEEP)
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, int) and value.bit_length() > 64:
                raise ConfigError(TOO_LARGE)
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float()) as operand):
            return -_evaluate(operand) if isinstance(sign, ast.USub) else _evaluate(operand)
        case ast.Name(id="true" | "false" | "none" as name):
            return {"true": True, "false": False, "none": None}[name]
        case ast.List(elts=items):
            return [_evaluate(item, depth + 1) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item, depth + 1) for item in items)
        case ast.Dict(keys=keys, values=items):
            names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            names, items = [keyword.arg for keyword in keywords], [keyword.value for keyword in keywords]
        case _:
            raise ValueError("no Python literal.")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("no Python literal with strings as keys.")
    return {name: _evaluate(item, depth + 1) for name, item in zip(names, items, strict=True)}


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _split_flag(flag: str) -> tuple[str, list[str | int], str]:
    """Returns (the flag up to its `=`, its keys and indices, the text of its value)."""
    name, equals, text = flag.partition("=")
    shown, path = _short(name), name.removeprefix("--config")
    if not flag.startswith("--config."):
        raise ConfigError(f"{_short(flag)}: not a flag of this command; config keys are set with --config.key=value.")
    words = re.findall(r"\.[^.\[\]]+|\[-?[0-9]{1,9}\]", path)
    if "".join(words) != path:
        raise ConfigError(f"{shown}: not a key; keys are like optim.lr, tasks[0].lengths or tasks[-1].n.")
    if len(words) > DEEPEST:
        raise ConfigError(f"{shown}: {TOO_DEEP}")
    if not equals:
        raise ConfigError(f"{shown}: no value; write {shown}=VALUE.")
    return shown, [word[1:] if word[0] == "." else int(word[1:-1]) for word in words], text


def _look_up(values: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _read_value(flag: str, text: str, there: Any) -> Any:
    if isinstance(there, str) and not text.startswith(("'", '"')):
        return text
    try:
        found = literal(text)
    except ConfigError as e:
        raise ConfigError(f"{flag}: {e}") from e
    except ValueError:
        return text
    return text if isinstance(there, str) and not isinstance(found, str) else found


def _assign(values: Table, flag: str, keys: Sequence[str | int], value: Any) -> None:
    """Puts a value where the keys lead; tables that are missing on the way are made, items of lists are not."""
    at: Any = values
    place = "config"
    for key, after in zip(keys, [*keys[1:], None], strict=True):
        is_list, is_table = isinstance(at, list), isinstance(at, dict)
        if isinstance(key, int):
            if not is_list:
                raise ConfigError(f"{flag}: there is no [{key}]: {place} is no list, it is {_short(repr(at))}.")
            if not -len(at) <= key < len(at):
                there = f"is an empty list; set it whole, --{place}=[...]" if not at else f"has [0] to [{len(at) - 1}]"
                raise ConfigError(f"{flag}: there is no [{key}]: {place} {there}.")
            here, there = f"{place}[{key}]", at[key]
        else:
            if is_list:
                raise ConfigError(f"{flag}: {place} is a list of {len(at)}; one item's is set with --{place}[0].{key}.")
            if not is_table:
                raise ConfigError(f"{flag}: {place} is {_short(repr(at))}, no table: it has no keys.")
            here, there = f"{place}.{key}", at.get(key)
        if after is None:
            at[key] = value
        elif there is None and isinstance(after, int):
            near = nearest(str(key), [str(k) for k in at if k != key]) if is_table else ""
            raise ConfigError(f"{flag}: {here} is not set, so it has no [{after}]; set it whole, --{here}=[...].{near}")
        elif there is None:
            there = at[key] = Table()
        at, place = there, here


def _plain(value: Any) -> Any:
    """Returns `value` with its mappings as Tables, lists and tuples as lists of its own, and references resolved."""
    if type(value).__name__ == "FieldReference":
        value = value.get()
    if _is_mapping(value):
        return Table({k: _plain(value[k]) for k in value})
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _run_file(path: str) -> Table:
    typed, _, argument = path.partition(":")
    shown = f"--config={_short(typed)}"
    if not typed:
        raise ConfigError("--config: empty; expected FILE.py, FILE.py:ARGUMENT or the folder of a config.py.")
    file = Path(typed).absolute()
    if os.path.isdir(file):
        file /= "config.py"
        if not os.path.isfile(file):
            raise ConfigError(f"{shown}: this folder has no config.py.")
    if not os.path.isfile(file):
        beside = [other.name for other in file.parent.glob("*.py")] if os.path.isdir(file.parent) else []
        raise ConfigError(f"--config: no such file: {_short(typed)}.{nearest(file.name, beside)}")
    try:
        source = file.read_bytes()
    except OSError as e:
        raise ConfigError(f"{shown}: {e.strerror}.") from e
    module = types.ModuleType(_module_name(file))
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where its own functions and dataclasses look for it
    try:
        with _naming_the_line(shown, file):
            # Compiled here, since Python's own loader takes a file edited within a second for the one it has cached.
            exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{shown}: has no function get_config().{nearest('get_config', list(vars(module)))}")
    code = getattr(get_config, "__code__", None)
    place = f"{shown}, line {code.co_firstlineno}" if code and code.co_filename == str(file) else shown
    with _naming_the_line(shown, file):
        signature = inspect.signature(get_config)
    given = [argument] if argument else []
    try:
        signature.bind(*given)
    except TypeError as e:
        got = f"got {_short(repr(argument))}" if argument else f"none was given, as in {typed}:ARGUMENT"
        raise ConfigError(f"{place}: get_config{signature}: {e}; {got}.") from e
    with _naming_the_line(shown, file):
        values = get_config(*given)
        plain = _plain(values)
    if not isinstance(plain, Table):
        raise ConfigError(f"{place}: get_config() returned {_short(repr(values))}; expected a ConfigDict or a dict.")
    return plain


def _module_name(file: Path) -> str:
    """Returns the file's stem, by which its functions can be imported; longer where that is another module's name."""
    name = file.stem
    while True:
        if name in sys.modules:
            taken = getattr(sys.modules[name], "__file__", None) != str(file)
        else:
            spec = PathFinder.find_spec(name)
            taken = name in sys.builtin_module_names or (spec is not None and spec.origin not in (None, str(file)))
        if not taken:
            return name
        name += "_"


@contextlib.contextmanager
def _naming_the_line(shown: str, file: Path) -> Iterator[None]:
    """Raises what a config file raises as a ConfigError that names its line."""
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as e:
        lines = [line for frame, line in traceback.walk_tb(e.__traceback__) if frame.f_code.co_filename == str(file)]
        text = str(e)
        if isinstance(e, SyntaxError) and e.filename == str(file):
            lines, text = [e.lineno], str(e.msg)
        place = f"{shown}, line {lines[-1]}" if lines and lines[-1] else shown
        said = " ".join(f"{type(e).__name__}: {text}".rstrip(": ").split())
        raise ConfigError(f"{place}: {said}") from e


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
        # Numbers that may also be arrays inside a step are floats in a config.
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
