"""Every public function, class and method says what it does: the sources are read with `ast`, nothing is imported."""

import ast
import pathlib

SOURCES = pathlib.Path(__file__).parent.parent / "giraffe_jax"


def undocumented(source: str) -> list[str]:
    """`line name` of each public function, class or method of `source` that has no docstring.

    Public: no leading underscore, at module level or in a public class.
    """
    missing = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                # A definition under `if` or `try` is public too.
                for block in ("body", "orelse", "finalbody"):
                    visit(getattr(node, block, []), prefix)
                continue
            if node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                missing.append(f"{node.lineno} {prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(source).body, "")
    return missing


def test_the_reader_finds_what_has_no_docstring():
    source = '''
def said():
    """Says."""
def silent(): ...
def _private(): ...
class Open:
    """Says."""
    def method(self): ...
    def __post_init__(self): ...
class _Closed:
    def method(self): ...
if True:
    def guarded(): ...
'''
    assert undocumented(source) == ["4 silent", "8 Open.method", "13 guarded"]


def test_public_names_have_docstrings():
    missing = [
        f"{path.relative_to(SOURCES.parent)}:{name}"
        for path in sorted(SOURCES.rglob("*.py"))
        for name in undocumented(path.read_text(encoding="utf-8"))
    ]
    assert not missing, f"{len(missing)} public names without a docstring:\n" + "\n".join(missing)
