"""Config files: Python files whose `get_config` returns the config. Errors in one name its line."""

import contextlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from giraffe_jax.config.overrides import Table, _assign, _look_up, _plain, _read_value, _short, _split_flag
from giraffe_jax.config.schema import ConfigError, nearest


def load(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Returns what the config file's get_config() returns, as nested Tables and lists, with overrides applied in order.

    Args:
      path: `file.py` or `file.py:argument`; a folder means its `config.py`.
      overrides: flags as typed, `--config.KEY=VALUE`. A KEY is like `optim.lr` or `tasks[-1].lengths`, and need not be
        set in the file. A VALUE is what `literal` reads, else a string as typed. A key that is a string in the file
        takes any VALUE as typed, without its quotes if it has them.

    Raises:
      ConfigError: a file that cannot be read or run, naming its line; a flag whose key cannot exist in the config. Keys
        that no dataclass has are found later, by `build`.
    """
    flags = [_split_flag(flag) for flag in overrides]
    values = _run_file(str(path))
    # The type of the value in the file decides how a flag's text is read, whatever flags come before it.
    assignments = [(flag, keys, _read_value(flag, text, _look_up(values, keys))) for flag, keys, text in flags]
    for flag, keys, value in assignments:
        _assign(values, flag, keys, _plain(value))
    return values


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
            # Not by Python's own loader: its cache misses a file that is edited twice within a second.
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
    arguments = [argument] if argument else []
    try:
        signature.bind(*arguments)
    except TypeError as e:
        received = f"got {_short(repr(argument))}" if argument else f"none was given, as in {typed}:ARGUMENT"
        raise ConfigError(f"{place}: get_config{signature}: {e}; {received}.") from e
    with _naming_the_line(shown, file):
        values = get_config(*arguments)
        plain = _plain(values)
    if not isinstance(plain, Table):
        raise ConfigError(f"{place}: get_config() returned {_short(repr(values))}; expected a ConfigDict or a dict.")
    return plain


def _module_name(file: Path) -> str:
    """Returns a module name for the file: its stem, with "_" appended while another module has that name."""
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
    """Turns an exception of a config file into a ConfigError that names its line."""
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
        message = " ".join(f"{type(e).__name__}: {text}".rstrip(": ").split())
        raise ConfigError(f"{place}: {message}") from e
