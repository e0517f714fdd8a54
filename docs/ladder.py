"""The ladder of CONTRIBUTING.md, drawn from the package's imports: `python docs/ladder.py` writes docs/ladder.svg.

tests/test_ladder.py checks by the same table that every import goes down.

Boxes are folders and modules of giraffe_jax, higher rows above; a line is an import, the wider the more of them. Those
of `config`, which everything imports, are left out.
"""

import ast
import collections
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "giraffe_jax"

LADDER = [
    {"config", "records", "provenance", "tuning", "devices"},
    {"positions", "sharding", "tokenizer"},
    {"ops", "data", "checkpoint"},
    {"attention"},
    {"model"},
    {"inference"},
    {"hf"},
    {"identity"},
    {"base"},
    {"loading"},
    {"training", "evals"},
    {"report", "bench", "plan"},
    {"lab"},
    {"cli"},
]

WIDTH, ROW, BOX, HEIGHT = 960, 74, 116, 30


def modules(root: Path = PACKAGE) -> list[Path]:
    """Every module of the package but its own light `__init__`."""
    return [file for file in sorted(root.rglob("*.py")) if file != root / "__init__.py"]


def owner(file: Path, root: Path = PACKAGE) -> str:
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


def arrows() -> collections.Counter[tuple[str, str]]:
    """Returns how many imports go from one folder or module to another one."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for file in modules():
        package = ("giraffe_jax", *file.relative_to(PACKAGE).parent.parts)
        for _, name in imported(file.read_text(encoding="utf-8"), package):
            if name not in (owner(file), "config") and any(name in row for row in LADDER):
                found[owner(file), name] += 1
    return found


def drawing() -> str:
    """Returns the SVG."""
    at = {}
    for level, row in enumerate(LADDER):
        y = 20 + ROW * (len(LADDER) - 1 - level)
        # Shifted from row to row, so that lines do not hide behind boxes.
        shift = 60 * (level % 3 - 1)
        for number, name in enumerate(sorted(row)):
            at[name] = (WIDTH * (number + 1) / (len(row) + 1) + shift, y)
    lines = []
    for (upper, lower), count in sorted(arrows().items()):
        (x, y), (to_x, to_y) = at[upper], at[lower]
        y, to_y = (y + HEIGHT, to_y) if to_y > y else (y + HEIGHT / 2, to_y + HEIGHT / 2)
        ends = f'x1="{x:.0f}" y1="{y:.0f}" x2="{to_x:.0f}" y2="{to_y:.0f}"'
        lines.append(f'<line {ends} stroke-width="{min(0.5 + count / 6, 4):.1f}"/>')
    boxes = [
        f'<rect x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x:.0f}" y="{y + 20}">{name}</text>'
        for name, (x, y) in sorted(at.items())
    ]
    height = 40 + ROW * (len(LADDER) - 1) + HEIGHT
    style = (
        "line{stroke:#7a8699;stroke-opacity:.45}rect{fill:#fff;stroke:#2b3a55}"
        "text{font:14px sans-serif;text-anchor:middle;fill:#1b2436}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
    title = "<title>giraffe_jax: what imports what, higher rows above</title>"
    background = f'<path fill="#fff" d="M0 0h{WIDTH}v{height}H0z"/>'
    return "\n".join([head, title, f"<style>{style}</style>", background, *lines, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "ladder.svg").write_text(drawing())
