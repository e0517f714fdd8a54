"""The reader's path is the import path: every module imports only from lower rows of the ladder, or its own package."""

import ast
import runpy
from pathlib import Path

import pytest

import giraffe_jax

ROOT = Path(str(giraffe_jax.__file__)).parent

LADDER = [
    {"config", "records", "provenance", "tuning", "devices"},
    {"positions", "sharding", "tokenizer"},
    {"ops", "data", "checkpoint"},
    {"attention"},
    {"model"},
    {"inference"},
    {"hf"},
    {"loading"},
    {"identity"},
    {"training", "evals"},
    {"report", "bench", "plan"},
    {"lab"},
    {"cli"},
]
LEVEL = {name: level for level, row in enumerate(LADDER) for name in row}
# What its neighbours in a row may import too.
SHARED = {"config"}


def modules(root: Path = ROOT) -> list[Path]:
    """Every module of the package but its own light `__init__`."""
    return [file for file in sorted(root.rglob("*.py")) if file != root / "__init__.py"]


def owner(file: Path, root: Path = ROOT) -> str:
    """The package or top-level module a file belongs to: its row in the ladder is looked up by this name."""
    return file.relative_to(root).parts[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> list[tuple[int, str]]:
    """(line, top-level name) of everything a source imports from giraffe_jax, inside functions too.

    `package` is where the source lives, ("giraffe_jax", "hf") say, by which relative imports are resolved.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            path = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{path}.{alias.name}") for alias in node.names]
    parts = [(line, name.split(".")) for line, name in found]
    return [(line, name[1]) for line, name in parts if name[0] == "giraffe_jax" and len(name) > 1]


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
    docs = ROOT.parent / "docs"
    drawing = runpy.run_path(str(docs / "ladder.py"))["drawing"]
    assert (docs / "ladder.svg").read_text() == drawing(), "python docs/ladder.py draws it anew"
