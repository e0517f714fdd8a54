"""The reader's path is the import path: every module imports only from lower rows of the ladder, or its own package."""

import ast
import runpy
from pathlib import Path

import pytest

import giraffe_jax

ROOT = Path(str(giraffe_jax.__file__)).parent
DRAWER = ROOT.parent / "docs" / "ladder.py"

# What is drawn and what is checked are one table and one reading of the imports.
DRAWN = runpy.run_path(str(DRAWER))
LADDER, modules, owner, imported = (DRAWN[name] for name in ("LADDER", "modules", "owner", "imported"))
LEVEL = {name: level for level, row in enumerate(LADDER) for name in row}
# What its neighbours in a row may import too.
SHARED = {"config"}


def violations(file: Path, root: Path = ROOT) -> list[str]:
    """What a file imports that it must not, one line each."""
    mine = owner(file, root)
    if mine not in LEVEL:
        return [f"{file.relative_to(root)}: {mine!r} has no row in the ladder"]
    package = ("giraffe_jax", *file.relative_to(root).parent.parts)
    found = []
    for line, name in imported(file.read_text(encoding="utf-8"), package):
        if name == mine or name in SHARED or name.startswith("__"):
            continue
        if name not in LEVEL or LEVEL[name] >= LEVEL[mine]:
            where = f"row {LEVEL[name]}" if name in LEVEL else "no row"
            found.append(f"{file.relative_to(root)}:{line}: {mine} (row {LEVEL[mine]}) imports {name} ({where})")
    return found


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules that each module imports, {"hf.load": {"hf.read", ...}}, inside functions too; packages by themselves
    only where a name of their `__init__` is meant."""
    files = {".".join(f.relative_to(root).with_suffix("").parts): f for f in modules(root)}
    names = {name.removesuffix(".__init__"): name for name in files}
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        package = ("giraffe_jax", *file.relative_to(root).parent.parts)
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                path = ".".join([*base, *([node.module] if node.module else [])])
                submodules = {f"{path}.{alias.name}" for alias in node.names}
                inner = {x for x in submodules if x.removeprefix("giraffe_jax.") in names}
                wanted |= inner if len(inner) == len(submodules) else inner | {path}
        here = {x.removeprefix("giraffe_jax.") for x in wanted if x.startswith("giraffe_jax.")}
        found[name] = {names[x] for x in here if x in names} - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    reach = {name: set(more) for name, more in graph.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {tuple(sorted(x for x in reach[name] if name in reach[x])) for name in reach if name in reach[name]}
    return sorted(map(list, groups))


def test_no_circles():
    found = circles(imports())
    assert not found, "\n".join(map(" <-> ".join, found))


def test_a_circle_is_found_inside_functions_too(tmp_path):
    for name, text in {
        "a": "from giraffe_jax.p import b",
        "p/__init__": "",
        "p/b": "def f():\n    from giraffe_jax.c import x",
        "c": "import giraffe_jax.a",
        "d": "from giraffe_jax.a import y",
    }.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert circles(imports(tmp_path)) == [["a", "c", "p.b"]]


def test_every_import_goes_down():
    found = [line for file in modules() for line in violations(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "source", "allowed"),
    [
        ("positions/compose.py", "from giraffe_jax.model import Llama", False),
        ("model/llama.py", "from giraffe_jax.positions import Encoding", True),
        ("ops/loss.py", "import giraffe_jax.training.loop", False),
        ("ops/loss.py", "def f():\n    from giraffe_jax import checkpoint", False),
        ("hf/load.py", "from ..training import load", False),
        ("hf/load.py", "from . import read", True),
        ("utils.py", "import os", False),
    ],
)
def test_the_ladder_sees_an_import_that_goes_up(tmp_path, where, source, allowed):
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert (not violations(file, tmp_path)) == allowed


def test_the_drawing_is_of_these_imports():
    assert DRAWER.with_suffix(".svg").read_text() == DRAWN["drawing"](), "python docs/ladder.py draws it anew"
