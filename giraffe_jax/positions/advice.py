"""Hints for errors in user-defined methods: which file was probably meant, which parameter causes the failure."""

import ast
import difflib
import inspect
import math
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jax.core import Tracer

from giraffe_jax.positions.encoding import Encoding

ENDLESS = ("high", "keys", "modulo", "highest", "window", "chunk", "limits")  # infinity is allowed here: no limit
RANGES = "Positive, NonNegative, Factor (>= 1) or Fraction (> 0 and <= 1), all of giraffe_jax.positions"


def meant(name: str) -> str:
    """Returns a hint for a name that is not a method's dotted path; an empty string if there is nothing to suggest.

    For "halfway" and "halfway.py" it is " Did you mean 'halfway.halfway'?" if a file of that name on sys.path defines
    methods; for "idea/halfway.py" it is the --methods flag that finds them. Files are parsed, not executed.
    """
    path, stem = Path(name), name.removeprefix("./").removesuffix(".py")
    if len(name) <= 255 and path.suffix == ".py" and path.parent != Path() and (paths := _methods(path)):
        return f" --methods={path.parent} is where {' or '.join(map(repr, paths))} is found."
    for folder in sys.path if stem.isidentifier() and len(stem) < 250 else ():
        if paths := _methods(Path(folder, f"{stem}.py")):
            return f" Did you mean {' or '.join(map(repr, paths))}?"
    return ""


def nearest_file(name: str) -> str:
    """Returns " Did you mean ...?" for the file of methods whose name is closest to the module of a dotted path."""
    stems = {file.stem for folder in sys.path for file in Path(folder).glob("*.py")}
    return next(filter(None, map(meant, difflib.get_close_matches(name.split(".")[0], stems))), "")


def _methods(file: Path) -> list[str]:
    """Returns the dotted paths of a file's methods (functions whose first parameter is annotated Encoding), at most
    three; the one named like the file comes first."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.args.args]
    first = {f.name: f.args.args[0].annotation for f in functions}
    names = [f for f, hint in first.items() if hint and ast.unparse(hint).strip("'\"").endswith("Encoding")]
    return [f"{file.stem}.{name}" for name in sorted(names, key=lambda name: name != file.stem)[:3]]


def not_finite(e: Encoding) -> tuple[str, str] | None:
    """Returns the first field with NaN or a forbidden infinity, like ("bands[0].q_pos.scale", "nan in 1 of 1").

    None if there is no such field. Traced arrays are not checked.
    """
    for path, value in jax.tree_util.tree_leaves_with_path(e.replace(pending=(), key=None)):
        if isinstance(value, Tracer) or not isinstance(value, np.ndarray | np.generic | jax.Array | float):
            continue
        numbers, field = np.asarray(value), jax.tree_util.keystr(path).removeprefix(".")
        if not np.issubdtype(numbers.dtype, np.floating):
            continue
        allowed = np.isfinite(numbers) | ((numbers == math.inf) & (field.split(".")[-1].split("[")[0] in ENDLESS))
        if not allowed.all():
            return field, f"{numbers[~allowed].flat[0]} in {np.sum(~allowed)} of {numbers.size}"
    return None


def blame(function: Callable, e: Encoding, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (".factor", advice) for the parameter whose value makes a method fail.

    Only numbers without a declared range are tried: one is the cause if the method works with its default, or 2, in its
    place. If several are causes, the first text is empty and the advice names all; if none is, both texts are empty.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    tame: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        value, default = arguments.get(name), parameter.default
        if _is_number(value) and not _has_range(hints.get(name)):
            tame[name] = default if _is_number(default) and default != value else 2 if isinstance(value, int) else 2.0
    causes = [name for name in tame if not _fails(function, e, {**arguments, name: tame[name]})]
    causes = causes or ([] if _fails(function, e, {**arguments, **tame}) else list(tame))
    if not causes:
        return "", ""
    values = " and ".join(f"{name} = {arguments[name]!r}" for name in causes)
    advice = f", with {values}. Declare a range to reject such values: {causes[0]}: {RANGES}"
    return f".{causes[0]}" if len(causes) == 1 else "", advice


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_range(hint: Any) -> bool:
    return any(typing.get_origin(part) is Annotated for part in (hint, *typing.get_args(hint)))


def _fails(function: Callable, e: Encoding, arguments: Mapping[str, Any]) -> bool:
    try:
        with np.errstate(all="ignore"):
            result = function(e, **arguments)
    except Exception:
        return True
    return not isinstance(result, Encoding) or not_finite(result) is not None
