"""The keys that a config may have: type, range, default and meaning of each, read from the config's dataclass.

The meaning of a key is the comment at its field: the comment lines directly above it, and the comment beside it.
"""

import ast
import dataclasses
import inspect
import io
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from giraffe_jax.config.schema import Bound

ITS_KEYS = "defaults of its keys"  # printed as the default of a key whose value is a dataclass


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    name: from the config's root, an element of a list as `[i]`: "data.sources[i].path".
    type: its type and range in words: "int >= 1", "list of str or None".
    default: as Python writes it; None if the key is required.
    meaning: "" if the field has no comment.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def keys(cls: type, prefix: str = "", listed: dict[type, str] | None = None) -> Iterator[Key]:
    """Yields the keys of a config's dataclass; a field that holds a dataclass is followed by that one's keys.

    Args:
      prefix: put before each name.
      listed: dataclasses whose keys are already listed -> the key that holds them. They are not listed again; the
        meaning names that key instead. Dataclasses that are listed here are added to it.
    """
    listed = {} if listed is None else listed
    comments, hints = meanings(cls), typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(typing.cast(Any, cls)):
        inner, repeated = _table(hints[field.name])
        name, meaning = f"{prefix}{field.name}", comments.get(field.name, "")
        place = f"{name}[i]" if repeated else name
        if inner in listed:
            meaning = f"{meaning} Its keys are those of {listed[inner]}.".lstrip()
        yield Key(name, type_text(hints[field.name]), _default(field), meaning)
        if inner is not None and inner not in listed:
            listed[inner] = place
            yield from keys(inner, f"{place}.", listed)


def meanings(cls: type) -> dict[str, str]:
    """Returns the comment at each field of a dataclass that has one, by the field's name."""
    source = textwrap.dedent(inspect.getsource(cls))
    (node,) = ast.parse(source).body
    alone: dict[int, str] = {}  # comments by line number: on a line of their own, and after code
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            (beside if token.line[: token.start[1]].strip() else alone)[token.start[0]] = text
    comments = {}
    for field in typing.cast(ast.ClassDef, node).body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            first = field.lineno
            while first - 1 in alone:
                first -= 1
            lines = [alone[line] for line in range(first, field.lineno)]
            lines += [beside[line] for line in range(field.lineno, (field.end_lineno or 0) + 1) if line in beside]
            if lines:
                comments[field.target.id] = " ".join(lines)
    return comments


def type_text(hint: Any) -> str:
    """Returns a field's type in words: "int >= 1", '"a" or "b"', "list of float", "keys and values"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if hint is Any:
        return "anything"
    if origin is Annotated:
        bound = next((arg for arg in args[1:] if isinstance(arg, Bound)), None)
        if bound is None:
            return type_text(args[0])
        kind = "list of numbers" if bound.many else type_text(args[0])
        # A technical upper limit, such as int32's, is not shown; the error for a larger number names it.
        shown = bound if bound.high < 2**16 else dataclasses.replace(bound, high=math.inf)
        return f"{kind} {shown}" if shown.low > -math.inf else kind
    if origin is Literal:
        return " or ".join(f'"{arg}"' if isinstance(arg, str) else str(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in args)
    if origin is tuple:
        element = type_text(args[0])
        return f"list of {f'({element})' if ' or ' in element else element}"
    if origin in (dict, Mapping) or hint in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "table"
    return getattr(hint, "__name__", str(hint))


def _table(hint: Any) -> tuple[type | None, bool]:
    """Returns the dataclass that a field holds, and whether it holds a list of them; (None, False) of other fields."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, False
    repeated = typing.get_origin(hint) is tuple
    for arg in typing.get_args(hint):
        cls, inner = _table(arg)
        if cls is not None:
            return cls, repeated or inner
    return None, False


def _default(field: dataclasses.Field) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        return _text(field.default_factory())
    return None if field.default is dataclasses.MISSING else _text(field.default)


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return ITS_KEYS
    if isinstance(value, Mapping):
        return "{}" if not value else repr(dict(value))
    return f'"{value}"' if isinstance(value, str) else repr(value)
