"""The catalogue of position methods; with a NAME, one of them drawn and explained, or your own by its dotted path.

  giraffe methods
  giraffe methods yarn
  giraffe methods yarn --factor=8 --head-dim=128 --theta=5e5 --original-len=8192 --out=yarn.svg
  giraffe methods my_method.wavelet --factor=8
  giraffe methods --page=docs/methods.md

A method of your own is found in the current folder or in --methods.
"""

import argparse
import ast
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs

WIDTH = 48  # characters of the longest bar
OWN = "own"  # the kind of a method that is not the catalogue's
UNSAID: dict[str, Any] = dict(training_free=False, export="", cache="")
KINDS = {
    "frequencies": "how fast each plane turns",
    "length": "frequencies that follow the length of the sequence",
    "training": "positions that differ while training",
    "bands": "distances that are true nearby and something else far away",
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
LISTS = {"Divisors": "list of float > 0", "Positives": "list of float > 0", "Choices": "list of lists of methods"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method's file as its source says it, read without importing it."""

    name: str
    summary: str
    text: str  # the module's docstring
    parameters: str
    about: str  # the function's docstring
    example: dict[str, Any]
    needs: tuple[str, ...]
    kind: str  # what it changes
    training_free: bool
    export: str  # "native" or "longrope" of a Hugging Face config, "custom" code, or "weights only"
    cache: str  # of keys: "rotated", or "raw" where they must be rotated anew
    instead: str = ""  # what comes nearest where it does not export
    test: str = ""  # whose file holds its closed form; its own by default

    @property
    def closed_form(self) -> str:
        """The test, in tests/positions, that compares it with its formula in float64."""
        return f"test_{self.test or self.name}.py"

    @property
    def exported(self) -> str:
        """How it exports, and what comes nearest where it does not."""
        return f"{self.export} code (nearest: {self.instead})" if self.instead else self.export

    @property
    def paper(self) -> str:
        """arXiv number of the first source named, or what the text calls it."""
        found = re.search(r"arXiv:(\d{4}\.\d{4,5})|kexue\.fm (\d+)|(bloc97|meta-llama|OpenReview)", self.text)
        if not found:
            return "-"
        return found[1] or (f"kexue {found[2]}" if found[2] else found[3])


def arguments(parser: argparse.ArgumentParser) -> None:
    width, tokens = configs.number(int, 2, high=2**16), configs.number(int, 1, high=2**31 - 1)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method")
    parser.add_argument("parameters", nargs="*", metavar="KEY=VALUE",
                        help="its parameters, --KEY=VALUE too; by default its example's")  # fmt: skip
    parser.add_argument(
        "--head-dim",
        "--head_dim",
        type=width,
        metavar="N",
        help="width of a head (64, or what a list of its parameters fits)",
    )
    base = configs.number(float, 0.0, above=True)
    parser.add_argument("--theta", type=base, default=10000.0, metavar="X", help="RoPE base (10000)")
    parser.add_argument(
        "--original-len",
        "--original_len",
        type=tokens,
        default=2048,
        metavar="N",
        help="pretraining context in tokens (2048)",
    )
    reach = "sequence length in tokens, for methods that depend on it"
    parser.add_argument("--length", type=tokens, metavar="N", help=reach)
    drawing = configs.new_file(".svg", ".png")
    plot = "draw wavelengths, distances and temperature to this file too (.svg, .png)"
    parser.add_argument("--out", type=drawing, metavar="FILE", help=plot)
    page = "write the whole catalogue as a Markdown page, with a plot of each method"
    parser.add_argument("--page", type=configs.new_file(), metavar="FILE", help=page)


def run(args: argparse.Namespace) -> int:
    from giraffe_jax.config import ConfigError, nearest

    entries = {entry.name: entry for entry in catalogue()}
    if args.page:
        from giraffe_jax.cli.field_guide import write_page

        print(f"{write_page(list(entries.values()), Path(args.page))}: {len(entries)} methods")
        return 0
    if args.name is None:
        print(listing(list(entries.values())))
        return 0
    if "." in args.name:
        entries[args.name] = own_entry(args.name)
    if args.name not in entries:
        raise ConfigError(
            f"unknown method {args.name!r}; there are {', '.join(entries)}.{nearest(args.name, list(entries))}"
        )
    entry = entries[args.name]
    call = {"name": args.name, **entry.example, **parse_parameters(args.parameters)}
    picture = draw(call, args, entry)  # first: it may refuse the parameters
    print(f"{entry.name}: {entry.text}\n\n{entry.name}({entry.parameters})\n\n    {entry.about}\n")
    if entry.kind != OWN:
        print(f"{entry.kind}; {_needs_training(entry)}; cached keys {entry.cache}; export: {entry.exported}.")
        print(f"Its closed form: tests/positions/{entry.closed_form}")
    print(f"In a config: c.model.positions = [{_spelled(call)}]\n\n{picture}")
    if args.out:
        from giraffe_jax.cli.field_guide import draw_method

        model = shape(call, args)
        print(f"\n{draw_method(call, Path(args.out), length=args.length, **model)}")
    return 0


def _needs_training(entry: Entry) -> str:
    return "needs no training" if entry.training_free else "trained with"


def listing(entries: list[Entry]) -> str:
    """Returns the catalogue by what methods change, with what one needs to choose among them."""
    width = max(len(entry.name) for entry in entries)
    tests = max(len(entry.closed_form) for entry in entries)
    head = f"{'':<{width}}  {'paper':<11} {'training':<8} {'keys':<8} {'export':<12} {'closed form':<{tests}}"
    lines = [
        f"{len(entries)} methods. training: whether one comes before use; keys: how a cache holds them; closed form: "
        "the test in tests/positions that writes the formula out in float64.",
        "",
        head.rstrip(),
    ]
    for kind in dict.fromkeys(sorted((entry.kind for entry in entries), key=list(KINDS).index)):
        lines += ["", f"{kind}: {KINDS[kind]}"]
        for entry in entries:
            if entry.kind == kind:
                training = "free" if entry.training_free else "needed"
                facts = (
                    f"{entry.paper:<11} {training:<8} {entry.cache:<8} {entry.export:<12} {entry.closed_form:<{tests}}"
                )
                lines.append(f"{entry.name:<{width}}  {facts} {entry.summary}")
    return "\n".join(lines)


def catalogue() -> list[Entry]:
    """Returns the methods of positions/methods, in order of their names."""
    import giraffe_jax

    folder = Path(str(giraffe_jax.__file__)).parent / "positions" / "methods"
    return [read_entry(file) for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]


def own_entry(name: str) -> Entry:
    """Returns what the file of an own method says about it; EXAMPLE and ABOUT may be missing there."""
    import inspect

    from giraffe_jax.positions import lookup

    function = lookup(name, "giraffe methods")
    return read_entry(Path(inspect.getfile(function)), function.__name__)


def read_entry(file: Path, name: str = "") -> Entry:
    """Returns what a method's file says about itself."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    own, name = bool(name), name or file.stem
    (function,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    keywords = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
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
        about=(ast.get_docstring(function) or "").strip().replace("\n", "\n    "),
        example=dict(constants.get("EXAMPLE") or {}),
        needs=tuple(constants.get("NEEDS", ())),
        **(UNSAID | constants.get("ABOUT", {}) | {"kind": OWN} if own else constants["ABOUT"]),
    )


def _type(annotation: str) -> str:
    """Returns an annotation as a reader of the catalogue wants it: ranges and choices instead of the names of types."""
    annotation = annotation.replace("[Number, ", "[float, ")
    annotation = re.sub(r"Annotated\[(\w+), Bound\((.+?)\)\]", r"\1 >= \2", annotation)
    annotation = re.sub(r"Sequence\[(.+?)\]", r"list of \1", annotation)
    annotation = re.sub(r"Literal\[(.+?)\]", lambda m: m[1].replace(", ", " | "), annotation)
    return re.sub(r"\w+", lambda m: (RANGES | LISTS).get(m[0], m[0]), annotation)


def _constants(module: ast.Module) -> dict[str, Any]:
    """Returns the module's upper-case assignments whose values are literals or dict(...) of literals."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            value = node.value
            try:
                if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
                    found[node.targets[0].id] = {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
                else:
                    found[node.targets[0].id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """Returns `factor=8` and the like as keys and values; what is not a Python literal is text."""
    from giraffe_jax.config import ConfigError

    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{word!r}: parameters are written KEY=VALUE, as in factor=8.")
        try:
            found[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[key] = value
    return found


def draw(call: dict[str, Any], args: argparse.Namespace, entry: Entry) -> str:
    """Returns each rotary plane's speed relative to plain RoPE, as bars of text."""
    from giraffe_jax import positions

    model = shape(call, args)
    length = args.length or (4 * args.original_len if entry.kind == "length" else None)
    if entry.kind == "layers":
        return "Layers differ: see its text."
    scaling = [call]
    inv_freq, gain = positions.frequencies(scaling, **model, length=length)
    plain, _ = positions.frequencies([], **model)
    ratio = inv_freq.astype(float) / plain
    head = ", ".join(f"{key} {value:g}" for key, value in (model | ({"length": length} if length else {})).items())
    lines = [f"Speed of each rotary plane relative to plain RoPE ({head}; gain {gain:.4g}):", ""]
    shown = sorted({round(i * (len(ratio) - 1) / 15) for i in range(16)})
    top = max(1.0, float(ratio.max()))
    for plane in shown:
        bar = "\u2588" * round(WIDTH * float(ratio[plane]) / top)
        lines.append(
            f"  plane {plane:>3}  wavelength {_wavelength(float(plain[plane]))} tokens  {ratio[plane]:7.4f}  {bar}"
        )
    if set(entry.needs) & {"positions", "key"}:
        lines += ["", f"It changes more than frequencies: it reads {' and '.join(entry.needs)} inside the step."]
    return "\n".join(lines)


def shape(call: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns the model that a method is drawn for; a list among its parameters has one value per rotary plane."""
    lists = [value for key, value in call.items() if key in ("short_factor", "long_factor")]
    fitting = 2 * len(lists[0]) if lists else 64
    head_dim = fitting if args.head_dim is None else args.head_dim
    return dict(head_dim=head_dim, theta=args.theta, original_len=args.original_len)


def _wavelength(inv_freq: float) -> str:
    return f"{2 * math.pi / inv_freq:>12,.0f}"


def _spelled(call: dict[str, Any]) -> str:
    return f"dict({', '.join(f'{key}={value!r}' for key, value in call.items())})"
