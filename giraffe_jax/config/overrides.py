"""Flags that change a config: `--model.positions.0.factor=8`, values as Python literals."""

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from giraffe_jax.config.schema import ConfigError, _is_mapping, nearest


class Table(dict):
    """A dict whose keys are attributes too: `table.optim.lr`. `load` returns one, as is every mapping in it."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        keys = [str(key) for key in self]
        raise AttributeError(f"no key {name!r}; there are {', '.join(keys)}.{nearest(name, keys)}")


def literal(text: str) -> Any:
    """Returns the value of a Python literal: number, string, None, list, tuple, dict, `dict(name="yarn", factor=4.0)`.

    True, False and None may be lower case; keys of dicts are strings.

    Raises:
      ValueError: the text is not such a literal.
      ConfigError: it is nested deeper than DEEPEST, or has an integer of more than 64 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of unknown escapes in strings, and keeps them as typed
            return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as e:
        if "too many nested" in str(e.msg):
            raise ConfigError(TOO_DEEP) from e
        if "Exceeds the limit" in str(e.msg):
            raise ConfigError(TOO_LARGE) from e
        raise ValueError(f"no Python literal: {_short(text)}.") from e
    except (RecursionError, MemoryError) as e:  # the parser's own limits
        raise ConfigError(TOO_DEEP) from e


DEEPEST = 32  # most levels of nesting in a flag's value, and in its key
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


def _read_value(flag: str, text: str, current: Any) -> Any:
    if isinstance(current, str) and not text.startswith(("'", '"')):
        return text
    try:
        value = literal(text)
    except ConfigError as e:
        raise ConfigError(f"{flag}: {e}") from e
    except ValueError:
        return text
    return text if isinstance(current, str) and not isinstance(value, str) else value


def _assign(values: Table, flag: str, keys: Sequence[str | int], value: Any) -> None:
    """Sets the value at a path of keys and indices. Creates missing tables on the way, but no missing list items."""
    at: Any = values
    place = "config"
    for key, after in zip(keys, [*keys[1:], None], strict=True):
        is_list, is_table = isinstance(at, list), isinstance(at, dict)
        if isinstance(key, int):
            if not is_list:
                raise ConfigError(f"{flag}: there is no [{key}]: {place} is no list, it is {_short(repr(at))}.")
            if not -len(at) <= key < len(at):
                extent = f"is an empty list; set it whole, --{place}=[...]" if not at else f"has [0] to [{len(at) - 1}]"
                raise ConfigError(f"{flag}: there is no [{key}]: {place} {extent}.")
            path, child = f"{place}[{key}]", at[key]
        else:
            if is_list:
                raise ConfigError(f"{flag}: {place} is a list of {len(at)}; one item's is set with --{place}[0].{key}.")
            if not is_table:
                raise ConfigError(f"{flag}: {place} is {_short(repr(at))}, no table: it has no keys.")
            path, child = f"{place}.{key}", at.get(key)
        if after is None:
            at[key] = value
        elif child is None and isinstance(after, int):
            near = nearest(str(key), [str(k) for k in at if k != key]) if is_table else ""
            raise ConfigError(f"{flag}: {path} is not set, so it has no [{after}]; set it whole, --{path}=[...].{near}")
        elif child is None:
            child = at[key] = Table()
        at, place = child, path


def _plain(value: Any) -> Any:
    """Returns a copy of `value` with mappings as Tables, tuples as lists, and ml_collections references resolved."""
    if type(value).__name__ == "FieldReference":
        value = value.get()
    if _is_mapping(value):
        return Table({k: _plain(value[k]) for k in value})
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
