"""List the catalogue of position methods; with a NAME, draw and explain one of them, or your own by its dotted path.

  giraffe methods
  giraffe methods yarn
  giraffe methods yarn --factor=8 --head-dim=128 --theta=5e5 --original-len=8192 --out=yarn.svg
  giraffe methods my_method.wavelet --factor=8
  giraffe methods --page=docs/methods.md

A method of your own is found in the current folder or in --methods; docs/encoding.md says what it may read and change.
"""

import argparse
import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs
from giraffe_jax.cli.catalogue import KINDS, OWN, Entry, catalogue, own_entry

WIDTH = 48  # characters of the longest bar
LAYERS = 4  # of the model that methods are drawn for
# Fields of an Encoding that the drawing shows, or that are given.
DRAWN = ("inv_freq", "gain", "theta", "original_len", "length", "num_layers", "pending")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe methods`."""
    width, tokens = configs.number(int, 2, high=2**16), configs.number(int, 1, high=2**31 - 1)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method")
    parser.add_argument("parameters", nargs="*", metavar="KEY=VALUE",
                        help="its parameters, or as --KEY=VALUE; by default its example's")  # fmt: skip
    parser.add_argument(
        "--head-dim",
        "--head_dim",
        type=width,
        metavar="N",
        help="width of a head (64, or twice the length of a list among the parameters)",
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
    plot = "also plot wavelengths, distances and temperature to this file (.svg, .png)"
    parser.add_argument("--out", type=drawing, metavar="FILE", help=plot)
    page = "write the whole catalogue as a Markdown page, with a plot of each method"
    parser.add_argument("--page", type=configs.new_file(), metavar="FILE", help=page)


def run(args: argparse.Namespace) -> int:
    """Prints the catalogue or one method, or writes the page; returns 0.

    Raises:
      ConfigError: the method is unknown, or its parameters are missing or wrong.
    """
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
        from giraffe_jax.positions.advice import meant

        hint = meant(args.name) or nearest(args.name, list(entries))
        raise ConfigError(f"unknown method {args.name!r}; there are {', '.join(entries)}.{hint}")
    entry = entries[args.name]
    call = {"name": args.name, **entry.example, **parse_parameters(args.parameters)}
    missing = [name for name in entry.required if name not in call]
    if missing and not args.parameters:
        first, example = missing[0], ", ".join(f"{name}=..." for name in missing)
        raise ConfigError(
            f"{args.name}: missing {missing}: write --{first}=VALUE"
            + (f", or EXAMPLE = dict({example}) in its file." if entry.kind == OWN else ".")
        )
    picture = draw(call, args, entry)  # before anything is printed: it may reject the parameters
    print(f"{entry.name}: {entry.text or 'its file has no docstring.'}\n\n{entry.name}({entry.parameters})\n")
    if entry.description:
        print(f"    {entry.description}\n")
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
    """Returns the catalogue as text: methods grouped by what they change, each with the facts needed to choose one."""
    width = max(len(entry.name) for entry in entries)
    tests = max(len(entry.closed_form) for entry in entries)
    head = f"{'':<{width}}  {'paper':<11} {'training':<8} {'keys':<8} {'export':<12} {'closed form':<{tests}}"
    lines = [
        f"{len(entries)} methods. training: whether the model must be trained with it; keys: how the KV cache stores "
        "them; closed form: the test in tests/positions that computes the formula in float64.",
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


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """Returns words like `factor=8` as keys and values; a value that is not a Python literal is a string.

    Raises:
      ConfigError: a word is not KEY=VALUE.
    """
    from giraffe_jax.config import ConfigError

    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{word!r}: parameters are written KEY=VALUE, as in factor=8.")
        try:
            parameters[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parameters[key] = value
    return parameters


def draw(call: dict[str, Any], args: argparse.Namespace, entry: Entry) -> str:
    """Returns the speed of rotary planes relative to plain RoPE, as bars of text, and what else the method changes."""
    from giraffe_jax import positions

    model = shape(call, args)
    follows = entry.kind == "length" or "length" in entry.needs
    length = args.length or (4 * args.original_len if follows else None)
    settings: dict[str, Any] = dict(length=length or args.original_len, num_layers=LAYERS)
    e = positions.bind([call], **model, **settings, where="positions")
    plain = positions.bind([], **model, **settings)
    head = ", ".join(f"{key} {value:g}" for key, value in (model | ({"length": length} if length else {})).items())
    lines = [f"Speed of each rotary plane relative to plain RoPE ({head}; gain {e.gain:.4g}):"]
    rows = e.inv_freq.astype(float).reshape(-1, e.inv_freq.shape[-1]) / plain.inv_freq
    for row in dict.fromkeys(map(tuple, rows)):
        alike = [str(layer) for layer in range(1, len(rows) + 1) if tuple(rows[layer - 1]) == row]
        lines += ["", *([f"layers {', '.join(alike)} of {len(rows)}:"] if len(rows) > 1 else [])]
        lines += _bars(row, plain.inv_freq)
    values = {field.name: getattr(e, field.name) for field in dataclasses.fields(e) if field.name not in DRAWN}
    changed = [name for name, value in values.items() if not (value is None or isinstance(value, tuple) and not value)]
    if effects := [*changed, *(f"what it makes of {need} inside the step" for need in entry.needs if need != "length")]:
        lines += ["", f"It changes more than frequencies and gain: {', '.join(effects)}."]
    return "\n".join(lines)


def _bars(ratio: Any, plain: Any) -> list[str]:
    """Returns a line for each of up to sixteen planes: its wavelength, its speed over plain RoPE's, a bar of that."""
    lines, top = [], max(1.0, *ratio)
    for plane in sorted({round(i * (len(ratio) - 1) / 15) for i in range(16)}):
        bar = "\u2588" * round(WIDTH * ratio[plane] / top)
        lines.append(
            f"  plane {plane:>3}  wavelength {_wavelength(float(plain[plane]))} tokens  {ratio[plane]:7.4f}  {bar}"
        )
    return lines


def shape(call: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns head_dim, theta and original_len to draw a method for; head_dim fits lists of one value per plane."""
    lists = [value for key, value in call.items() if key in ("short_factor", "long_factor")]
    fitting = 2 * len(lists[0]) if lists else 64
    head_dim = fitting if args.head_dim is None else args.head_dim
    return dict(head_dim=head_dim, theta=args.theta, original_len=args.original_len)


def _wavelength(inv_freq: float) -> str:
    return f"{2 * math.pi / inv_freq:>12,.0f}"


def _spelled(call: dict[str, Any]) -> str:
    return f"dict({', '.join(f'{key}={value!r}' for key, value in call.items())})"
