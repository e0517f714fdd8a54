"""The catalogue of position methods, parsed from their sources: importing them (and JAX) would make `--help` slow."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError

OWN = "own"  # the kind of a user's method, outside the catalogue
UNSAID: dict[str, Any] = dict(training_free=False, export="", cache="")
KINDS = {
    "frequencies": "how fast each plane rotates",
    "length": "frequencies that follow the length of the sequence",
    "training": "positions that differ while training",
    "bands": "true distances nearby, changed ones far away",
    "temperature": "what multiplies logits",
    "decay": "attention that fades with distance",
    "mask": "which keys are seen",
    "layers": "what differs between layers",
    "bias": "what is added to logits",
}
RANGES = {
    "Factor": "float >= 1",
    "Positive": "float > 0",
    "NonNegative": "float >= 0",
    "Extent": "float > 0",
}  # of positions/compose.py
LISTS = {
    "Divisors": "list of float > 0",
    "Positives": "list of float > 0",
    "Factors": "list of float >= 1",
    "Choices": "list of lists of methods",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """The facts about a method, parsed from its file."""

    name: str
    summary: str
    text: str  # the module's docstring
    parameters: str
    description: str  # the function's docstring
    required: tuple[str, ...]  # parameters without a default
    example: dict[str, Any]
    needs: tuple[str, ...]
    kind: str  # what it changes
    training_free: bool
    export: str  # "native" or "longrope" of a Hugging Face config, "custom" code, or "weights only"
    cache: str  # how keys are cached: "rotated", or "raw" if each step rotates them anew
    instead: str = ""  # the nearest method that exports, if this one does not
    test: str = ""  # the method whose test file holds the closed form; its own by default

    @property
    def closed_form(self) -> str:
        """The file in tests/positions that compares the method with its formula in float64."""
        return f"test_{self.test or self.name}.py"

    @property
    def exported(self) -> str:
        """How it exports, and the nearest method that does if it does not."""
        return f"{self.export} code (nearest: {self.instead})" if self.instead else self.export

    @property
    def paper(self) -> str:
        """arXiv number of the first source that the docstring names, another short name of it, or "-"."""
        match = re.search(r"arXiv:(\d{4}\.\d{4,5})|kexue\.fm (\d+)|(bloc97|meta-llama|OpenReview)", self.text)
        if not match:
            return "-"
        return match[1] or (f"kexue {match[2]}" if match[2] else match[3])


def catalogue() -> list[Entry]:
    """Returns the methods of positions/methods, sorted by name."""
    import giraffe_jax

    folder = Path(str(giraffe_jax.__file__)).parent / "positions" / "methods"
    return [read_entry(file) for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]


def own_entry(name: str) -> Entry:
    """Returns the entry of a user's method, given by its dotted path; its file needs neither EXAMPLE nor ABOUT."""
    import inspect

    from giraffe_jax.positions import lookup

    function = lookup(name, "NAME")
    return read_entry(Path(inspect.getfile(function)), function.__name__)


def read_entry(file: Path, name: str = "") -> Entry:
    """Returns the entry of a method's file.

    Args:
      file: the Python file.
      name: of the function, if it is a user's method; by default the file's name.

    Raises:
      ConfigError: the file does not define the function with `def`.
    """
    module = ast.parse(file.read_text(encoding="utf-8"))
    own, name = bool(name), name or file.stem
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not functions:
        raise ConfigError(
            f"{file}: {name} is not written there as `def {name}(...)`, so there is nothing to read of it."
        )
    function = functions[0]
    keywords = list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
    parameters = ", ".join(
        f"{arg.arg}: {_type(ast.unparse(arg.annotation)) if arg.annotation else 'anything'}"
        + ("" if default is None else f" = {ast.unparse(default)}")
        for arg, default in keywords
    )
    text = (ast.get_docstring(module) or "").strip()
    constants = _constants(module)
    return Entry(
        name=name,
        summary=text.split("\n")[0].rstrip("."),
        text=text,
        parameters=parameters,
        description=(ast.get_docstring(function) or "").strip().replace("\n", "\n    "),
        required=tuple(arg.arg for arg, default in keywords if default is None),
        example=dict(constants.get("EXAMPLE") or {}),
        needs=tuple(constants.get("NEEDS", ())),
        **(UNSAID | constants.get("ABOUT", {}) | {"kind": OWN} if own else constants["ABOUT"]),
    )


def _type(annotation: str) -> str:
    """Returns an annotation for display: ranges and choices instead of the names of types."""
    annotation = annotation.replace("[Number, ", "[float, ")
    annotation = re.sub(r"Annotated\[(\w+), Bound\((.+?)\)\]", r"\1 >= \2", annotation)
    annotation = re.sub(r"Sequence\[(.+?)\]", r"list of \1", annotation)
    annotation = re.sub(r"Literal\[(.+?)\]", lambda m: m[1].replace(", ", " | "), annotation)
    return re.sub(r"\w+", lambda m: (RANGES | LISTS).get(m[0], m[0]), annotation)


def _constants(module: ast.Module) -> dict[str, Any]:
    """Returns the module's upper-case assignments whose values are literals or dict(...) of literals."""
    constants = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            value = node.value
            try:
                if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
                    constants[node.targets[0].id] = {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
                else:
                    constants[node.targets[0].id] = ast.literal_eval(value)
            except ValueError:
                continue
    return constants
