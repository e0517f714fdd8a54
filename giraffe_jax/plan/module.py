"""Parses the text of a compiled module (HLO) into its instructions."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_WIDTH = dict(pred=1, s4=0.5, u4=0.5, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8, c64=8)
_SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")


class Shape(NamedTuple):
    """An array's HLO element type ("bf16") and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Size of the array."""
        return _WIDTH.get(self.dtype, 1) * float(np.prod(self.dims, dtype=np.float64))


class Op(NamedTuple):
    """An instruction: `inside` is the text between its parentheses, `attributes` the text after them."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    inside: str
    operands: tuple[str, ...]
    attributes: str


class Computation(NamedTuple):
    """A computation: its instructions by name, and the root, whose value it returns."""

    ops: Mapping[str, Op]
    root: Op


def parse(text: str) -> dict[str, Computation]:
    """Returns the computations of a module by name; the entry computation is also under ""."""
    computations: dict[str, Computation] = {}
    ops: dict[str, Op] | None = None
    name, entry, root = "", False, None
    for line in text.splitlines():
        if ops is None:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head is not None and not line.startswith("HloModule"):
                ops, name, entry, root = {}, head[2], head[1] is not None, None
        elif line.startswith("}"):
            last = root or next(reversed(ops.values()))
            computations[name] = Computation(ops, last)
            if entry:
                computations[""] = computations[name]
            ops = None
        elif (op := _op(line)) is not None:
            ops[op.name] = op
            root = op if line.lstrip().startswith("ROOT") else root
    return computations


def _op(line: str) -> Op | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.sub(r"/\*.*?\*/", "", line))
    if match is None:
        return None
    name, rest = match.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(Shape(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(rest[:end]))
    call = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if call is None:
        return None
    start = end + call.end() - 1
    stop = _closing(rest, start)
    arguments = rest[start + 1 : stop]
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(arguments) if part.strip())
    return Op(name, call[1], shapes, arguments, operands, rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text) - 1


def _split(text: str) -> list[str]:
    """Splits a list of operands at its top-level commas; the operands' types may contain commas too."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def called(computations: Mapping[str, Computation], op: Op, keys: str) -> list[Computation]:
    """Returns the computations that an instruction names under `keys`, a regex of attributes like "calls|to_apply"."""
    names = []
    for match in re.finditer(rf"\b(?:{keys})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", op.attributes):
        names += [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]
    return [computations[name] for name in names if name in computations]
