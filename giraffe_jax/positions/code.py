"""Source code of user-defined methods: which files it consists of, and whether two texts are the same code.

Nothing is executed or imported here: imports are found by parsing. A method's code is its module and the modules of its
project that it imports, directly or indirectly; installed packages and giraffe_jax are identified by their versions.
The text of a loaded module is read when it is first asked for, and remembered: a process that runs for hours records
the code that it imported, not what the file was edited to since.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax.positions.own import CATALOGUE

OURS = "giraffe_jax"
INSTALLED = ("site-packages", "dist-packages")
SEEN = "giraffe_jax_text"  # attribute of a loaded module's spec: the text that it was loaded from


def sources(scaling: Any) -> dict[str, str]:
    """Returns {"folder/my_method.py": text} for the user-defined methods in a list of methods, nested lists included,
    and for the modules of their project that they import, directly or indirectly."""
    files: dict[str, str] = {}
    for name in _names(scaling):
        module, _, attribute = str(name).rpartition(".")
        if callable(name):
            module, attribute = name.__module__, name.__qualname__
        if module.startswith(CATALOGUE) or module not in sys.modules:
            continue
        if _file(module) is not None:
            files |= texts(module)
        elif text := _typed(name if callable(name) else getattr(sys.modules[module], attribute, None)):
            files[f"{module}.{re.sub(r'[^0-9A-Za-z_]+', '_', attribute)}.py"] = text
    return dict(sorted(files.items()))


def same(one: str, other: str) -> bool:
    """Returns whether two texts are the same code, ignoring comments, layout, line endings and docstrings."""
    return digest(one) == digest(other)


def digest(text: str) -> str:
    """Returns a hash of the code, 16 hex digits, which is the same on every machine and Python version.

    It ignores comments and layout, and docstrings unless the code reads `__doc__`.
    """
    text = text.replace("\r\n", "\n")
    try:
        code = repr(_plain(ast.parse(text), "__doc__" in text))
    except (SyntaxError, ValueError, RecursionError):
        code = text
    return hashlib.sha256(code.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def _plain(node: Any, documented: bool) -> Any:
    """Returns a syntax tree as nested lists of strings. Unlike ast.dump it leaves out empty fields, so that a field
    added in a newer Python does not change it."""
    if isinstance(node, list):
        return [_plain(item, documented) for item in node if documented or not _is_text(item)]
    if not isinstance(node, ast.AST):
        return None if node is None else repr(node)
    fields = [(name, _plain(value, documented)) for name, value in ast.iter_fields(node)]
    skipped = ("ctx", "kind", "type_comment", "type_ignores")
    return [type(node).__name__, *(f for f in fields if f[1] not in (None, []) and f[0] not in skipped)]


def _is_text(node: Any) -> bool:
    """Returns whether a statement is nothing but a string, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def texts(module: str) -> dict[str, str]:
    """Returns {path below the import root: text} of a loaded module and of its project's modules that it imports."""
    start = _file(module)
    assert start is not None
    package = start.name == "__init__.py"
    root = start.parents[min(module.count(".") + package, len(start.parents) - 1)]
    project = next((folder for folder in (root, *root.parents) if (folder / "pyproject.toml").is_file()), root)
    library = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    installed = any(part in INSTALLED for part in start.parts)

    def beside(name: str, file: Path) -> bool:
        top = name.partition(".")[0]
        if installed or top == OURS:
            return top == module.partition(".")[0] != OURS
        if any(part in INSTALLED for part in file.parts) or any(file.is_relative_to(folder) for folder in library):
            return False
        return file.is_relative_to(root) or file.is_relative_to(project)

    files: dict[str, str] = {}
    waiting, seen = [module], set()
    while waiting:
        parts = waiting.pop().split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):  # a package runs before what is in it
            if name in seen:
                continue
            seen.add(name)
            file = _file(name)
            if file is None or not (name == module or beside(name, file)):
                continue
            package = file.name == "__init__.py"
            text = _text(name, file)
            files[name.replace(".", "/") + ("/__init__.py" if package else ".py")] = text
            waiting += _imported(text, name, package)
    return files


def _text(name: str, file: Path) -> str:
    """Returns a module's text as first read after it was loaded; warns if the file has changed since."""
    current = importlib.util.decode_source(file.read_bytes())
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:
        return current
    if not hasattr(spec, SEEN):  # reloading a module makes a new spec
        setattr(spec, SEEN, current)
    if not same(current, getattr(spec, SEEN)):
        warnings.warn(
            f"{file} was edited after this process imported it, and the old code is still running: restart, or "
            f"importlib.reload({name})",
            stacklevel=2,
        )
    return getattr(spec, SEEN)


def _imported(text: str, name: str, package: bool) -> list[str]:
    """Returns the dotted names that a module may import, also inside functions; some may not be modules."""
    names = []
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = parts[: len(parts) - node.level + package] if node.level else []
            head = ".".join([*base, *([node.module] if node.module else [])])
            names += [head, *(f"{head}.{alias.name}" for alias in node.names)] if head else []
            names += [] if head else [alias.name for alias in node.names]
    return names


def _file(name: str) -> Path | None:
    """Returns the Python file of a module, whether it is loaded or not."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        head, _, _ = name.rpartition(".")
        inside = _folders(head) if head else None
        if head and not inside:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, inside)
        file = None if spec is None else spec.origin
    return Path(file).absolute() if file and file.endswith(".py") and Path(file).is_file() else None


def _folders(package: str) -> list[str]:
    """Returns the folders that hold a package's modules; empty if it is not a package."""
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    file = _file(package)
    return [str(file.parent)] if file is not None and file.name == "__init__.py" else []


def _typed(function: Any) -> str:
    """Returns the source of a function defined outside a file, as in a notebook; "" if Python does not have it."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return ""


def _names(scaling: Any) -> Iterator[Any]:
    for item in scaling if isinstance(scaling, list | tuple) else ():
        if isinstance(item, Mapping):
            name = item.get("name")
            if callable(name) or (isinstance(name, str) and "." in name):
                yield name
            for value in item.values():
                yield from _names(value)
        else:
            yield from _names(item)
