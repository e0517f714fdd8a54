"""User-defined methods: functions `Encoding -> Encoding` in any file, named in a config by their dotted path.

The file may lie beside the config, in the current folder, in its project, or be installed. A function is called only
if it has a method's signature, and errors name the line in it and the fix.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.config.dotted import described, module_of
from giraffe_jax.positions.advice import blame, meant, nearest_file, not_finite
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.slot import Mistake, check_shapes, checked

CATALOGUE = "giraffe_jax.positions.methods."
READS = ("length", "positions", "key")  # what NEEDS may declare
FORM = "def name(e: Encoding, *, factor: float) -> Encoding: return e.replace(...)"


def is_own(function: Callable) -> bool:
    """Returns whether a method is user-defined, that is, not in the catalogue."""
    return not str(function.__module__).startswith(CATALOGUE)


def label(function: Callable) -> str:
    """Returns a method's name in errors: its catalogue name, or its dotted path in a config."""
    name = getattr(function, "__name__", repr(function))
    return f"{function.__module__}.{name}" if is_own(function) and function.__module__ != "__main__" else name


def find(name: str, where: str) -> Callable:
    """Returns the function of a dotted path, such as "my_method.wavelet".

    Raises:
      ConfigError: there is no such module or function, the module fails to import, or the object is not a method.
    """
    module, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{where}: {name!r} is not a dotted path like my_method.wavelet.{meant(name)}")
    hint = f" --methods=FOLDER names the folder it is in.{nearest_file(name)}"
    imported = module_of(name, where, hint)
    function = getattr(imported, attribute, None)
    if function is None:
        functions = sorted(key for key, value in vars(imported).items() if inspect.isfunction(value) and key[0] != "_")
        raise ConfigError(
            f"{where}: {getattr(imported, '__file__', module)} has no function {attribute!r}; it has "
            f"{', '.join(functions) or 'none'}.{meant(name) or nearest(attribute, functions)}"
        )
    return check_form(function, where, name)


def check_form(function: Any, where: str, name: str = "") -> Callable:
    """Returns the function if it has a method's signature; no other function is ever called.

    Args:
      function: anything that a config or a caller gave.
      where, name: the config key and its value, for errors.

    Raises:
      ConfigError: it is not a function, or its parameters, annotations or its module's NEEDS are not a method's.
    """
    name = name or getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function):
        raise ConfigError(f"{where}: {name} is not a method but a {type(function).__name__}; write {FORM}.")
    parameters = list(inspect.signature(function).parameters.values())
    first = parameters[0].annotation if parameters else None
    if isinstance(first, str):
        first = function.__globals__.get(first)
    if first is not Encoding:
        raise ConfigError(
            f"{where}: {place(function)}: {name} is not a method: its first parameter must be annotated Encoding, as "
            f"in {FORM}."
        )
    for parameter in parameters[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise ConfigError(
                f"{where}: {place(function)}: parameter {parameter} of {name} is positional; a config sets parameters "
                "by name: put a * after the first, as in (e: Encoding, *, factor: float)."
            )
    try:
        typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ConfigError(f"{where}: {place(function)}: annotations of {name}: {described(error)}.") from error
    needs = getattr(sys.modules.get(function.__module__), "NEEDS", ())
    wrong = [need for need in needs if need not in READS] if isinstance(needs, tuple | list) else [needs]
    if wrong:
        hint = nearest(str(wrong[0]), READS)
        raise ConfigError(f"{where}: {place(function)}: NEEDS has {wrong[0]!r}; allowed are {', '.join(READS)}.{hint}")
    return function


def place(function: Callable) -> str:
    """Returns where a function is defined, "file.py:12"."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "?"


def call(function: Callable, e: Encoding, arguments: Mapping[str, Any], where: str) -> Encoding:
    """Returns the encoding after a user-defined method.

    Raises:
      ConfigError: it raised, or returned something other than an Encoding with as many planes, numbers that are not
        finite, or learned items that attention cannot use. Names the line, the fix, and the parameter at fault if that
        has no declared range.
    """
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are reported below
            result = function(e, **arguments)
    except ConfigError:
        raise
    except Exception as error:
        key, advice = blame(function, e, arguments) if isinstance(error, ArithmeticError | ValueError) else ("", "")
        raise ConfigError(
            f"{where}{key}: {described(error, _file(function))}{advice}.{_cure(error, function, e)}"
        ) from error
    at = f"{where}: {place(function)}"
    if not isinstance(result, Encoding):
        returned = "None" if result is None else type(result).__name__
        raise ConfigError(f"{at}: it returned {returned}; a method ends in `return e.replace(...)`.")
    planes = np.shape(e.inv_freq)[-1]
    shape = np.shape(result.inv_freq)
    if not shape or shape[-1] != planes or len(shape) > 4:
        raise ConfigError(
            f"{at}: it returned inv_freq of shape {shape}; expected ({planes},), a number for each rotary plane, or "
            f"(layers, {planes})."
        )
    if (wrong := not_finite(result)) and not not_finite(e):
        key, advice = blame(function, e, arguments)
        problem = f"it returned {wrong[0]} with numbers that are not finite: {wrong[1]}"
        raise ConfigError(f"{where}{key}: {place(function)}: {problem}{advice}.")
    if result.learned is not e.learned:
        try:
            check_shapes(checked(result))
        except Mistake as error:
            raise ConfigError(f"{at}: {error}") from error
        except Exception as error:
            raise ConfigError(f"{where}: {described(error, _file(function))}.{_cure(error, function, e)}") from error
    return result


def _file(function: Callable) -> str | None:
    return function.__code__.co_filename if isinstance(function, types.FunctionType) else None


def _cure(error: Exception, function: Callable, e: Encoding) -> str:
    needs = getattr(sys.modules.get(function.__module__), "NEEDS", ())
    names = function.__code__.co_names if isinstance(function, types.FunctionType) else ()
    missing = [name for name in READS if name in names and name not in needs and getattr(e, name) is None]
    if missing:
        fields = ", ".join(f"e.{name}" for name in missing)
        declared = tuple(dict.fromkeys([*needs, *missing]))
        return f" It reads {fields}, known only inside the step: the file must declare NEEDS = {declared!r}."
    if "Tracer" in type(error).__name__ or "Tracer" in str(error):
        return " Inside the step numbers are traced: compute with e.xp instead of numpy, and without `if` on them."
    return ""
