"""Modules of users, named in a config by a dotted path: own position methods and own evaluation tasks.

The file may lie beside the config, in the current folder, in its project, or be installed.
"""

import importlib
import traceback
from types import ModuleType

from giraffe_jax.config.schema import ConfigError

IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>", importlib.__file__)


def module_of(name: str, where: str, hint: str = "") -> ModuleType:
    """Returns the module of a dotted path such as "my_method.wavelet".

    Args:
      name: the path; what follows its last dot is in the module.
      where: the config key, for errors.
      hint: is appended to the error if there is no such module.

    Raises:
      ConfigError: no such module, or it fails to import (names the line).
    """
    module = name.rpartition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: {name!r}: {described(error)}.") from error
        raise ConfigError(
            f"{where}: cannot import {name!r}: no module {error.name!r} beside the config, in the current folder or "
            f"installed.{hint}"
        ) from None
    except Exception as error:
        raise ConfigError(f"{where}: {name!r}: its module fails: {described(error)}.") from error


def described(error: BaseException, file: str | None = None) -> str:
    """Returns an error with the innermost line in `file` (by default in any file but Python's importer and this one)
    that it passed through: "my_method.py:12: TypeError: ..."."""
    frames = traceback.extract_tb(error.__traceback__)
    skipped = (*IMPORTING, __file__)
    own = [frame for frame in frames if (frame.filename == file if file else frame.filename not in skipped)]
    if isinstance(error, SyntaxError):
        head = f"{error.filename}:{error.lineno}: "
    else:
        head = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    text = str(error).strip().split("\n")[0][:300].rstrip(".")
    return f"{head}{type(error).__name__}: {text}" if text else f"{head}{type(error).__name__}"
