"""What a compiled program does: FLOPs and bytes of collectives, counted in the optimised HLO of one device.

XLA's own `cost_analysis` counts the body of a loop once, which is a few percent of a model scanned over its layers.
Here dots and convolutions are counted times the trips of the loops they are in. A loop whose number of trips depends on
data (blockwise attention's, over the blocks of keys that a block of queries sees) takes what the caller says.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_WIDTH = dict(pred=1, s4=0.5, u4=0.5, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8, c64=8)
_SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


class Shape(NamedTuple):
    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> float:
        return _WIDTH.get(self.dtype, 1) * float(np.prod(self.dims, dtype=np.float64))


class Op(NamedTuple):
    """An instruction: `inside` is the text between its parentheses, `rest` what follows them."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    inside: str
    operands: tuple[str, ...]
    rest: str


class Computation(NamedTuple):
    ops: Mapping[str, Op]
    root: Op


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one device does in one run of a program."""

    flops: float  # of matmuls: two for a multiply-add
    recomputed: float  # part of them: of what a remat policy, or XLA short of memory, runs again
    collectives: Mapping[tuple[str, str], float]  # (kind, mesh axes): bytes of operands
    sent: float  # bytes that leave the device for them, by the algorithms that send least
    data_loops: int  # loops that took `data_trips`
    uncounted: tuple[str, ...]  # custom calls of kernels that do not say their FLOPs


def count(text: str, mesh: Mapping[str, int] | None = None, data_trips: float = 1.0) -> Counts:
    """Returns what a program does.

    Args:
      text: of an optimised module, `compiled.as_text()`.
      mesh: axes and sizes, in the order of the devices that it was compiled for; names the axes of collectives.
      data_trips: mean trips of a loop whose number of trips is not in the program.
    """
    walk = _Walk(parse(text), dict(mesh or {}), data_trips)
    found = walk.of(walk.entry)
    sums = {key[1:]: value for key, value in found.items() if key[0] == "collective"}
    kernels = tuple(sorted(key[1] for key in found if key[0] == "kernel"))
    numbers = found["flops",], found["recomputed",], sums, found["sent",]
    return Counts(*numbers, data_loops=len(walk.data_loops), uncounted=kernels)


def parse(text: str) -> dict[str, Computation]:
    """Returns the computations of a module by name; the entry's name is "" too."""
    found: dict[str, Computation] = {}
    ops: dict[str, Op] | None = None
    name, entry, root = "", False, None
    for line in text.splitlines():
        if ops is None:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head is not None and not line.startswith("HloModule"):
                ops, name, entry, root = {}, head[2], head[1] is not None, None
        elif line.startswith("}"):
            last = root or next(reversed(ops.values()))
            found[name] = Computation(ops, last)
            if entry:
                found[""] = found[name]
            ops = None
        elif (op := _op(line)) is not None:
            ops[op.name] = op
            root = op if line.lstrip().startswith("ROOT") else root
    return found


def _op(line: str) -> Op | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.sub(r"/\*.*?\*/", "", line))
    if found is None:
        return None
    name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(Shape(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(rest[:end]))
    call = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if call is None:
        return None
    start = end + call.end() - 1
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(inside) if part.strip())
    return Op(name, call[1], shapes, inside, operands, rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text) - 1


def _split(text: str) -> list[str]:
    """Returns the parts of a list of operands, whose types may hold commas."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


class _Walk:
    def __init__(self, computations: Mapping[str, Computation], mesh: Mapping[str, int], data_trips: float):
        self.computations, self.mesh, self.data_trips = computations, mesh, data_trips
        self.entry = computations[""]
        self.data_loops: set[str] = set()
        self._known: dict[int, Counter] = {}

    def of(self, computation: Computation) -> Counter:
        """Returns the sums of one run of a computation."""
        key = id(computation.ops)
        if key not in self._known:
            total: Counter = Counter()
            for op in computation.ops.values():
                for name, value in self._of_op(op, computation).items():
                    total[name] += value
            self._known[key] = total
        return self._known[key]

    def _of_op(self, op: Op, c: Computation) -> Mapping:
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(kind, op, c)
        if op.kind in ("dot", "convolution"):
            flops = _dot(op, c) if op.kind == "dot" else _convolution(op, c)
            return _flops(flops, op)
        if op.kind == "while":
            return self._loop(op, c)
        if op.kind == "conditional":
            branches = [self.of(b) for b in self._called(op, "branch_computations|true_computation|false_computation")]
            return max(branches, key=lambda sums: sums["flops",], default={})
        if op.kind == "custom-call":
            return self._custom_call(op)
        if op.kind in ("fusion", "call", "async-start"):
            sums: Counter = Counter()
            for inner in self._called(op, "calls|to_apply|called_computations"):
                sums.update(self.of(inner))
            if "all-reduce-scatter" in op.name:  # XLA's way to write a fused reduce-scatter
                sums = _as_reduce_scatter(sums)
            if ".remat" in op.name:
                sums["recomputed",] = sums["flops",]
            return sums
        return {}

    def _custom_call(self, op: Op) -> Mapping:
        estimate = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', op.rest)
        if estimate is not None:  # a Pallas kernel says what it computes
            return _flops(float(estimate[1]), op)
        if 'custom_call_target="tpu_custom_call"' in op.rest or "__triton" in op.rest or "__cudnn" in op.rest:
            return {("kernel", op.name): 1.0}
        return {}

    def _called(self, op: Op, keys: str) -> list[Computation]:
        names = []
        for found in re.finditer(rf"\b(?:{keys})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", op.rest):
            names += [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]
        return [self.computations[name] for name in names if name in self.computations]

    def _loop(self, op: Op, c: Computation) -> Mapping:
        (body,), (condition,) = self._called(op, "body"), self._called(op, "condition")
        trips = self._trips(op, c, body, condition)
        if trips is None:
            self.data_loops.add(op.name)
            trips = self.data_trips
        total: Counter = Counter()
        for inner, times in ((body, trips), (condition, trips + 1)):
            for name, value in self.of(inner).items():
                total[name] += value * times
        return total

    def _trips(self, op: Op, c: Computation, body: Computation, condition: Computation) -> int | None:
        """Returns how often a loop runs: as XLA says, or by its counter, start, limit and step; None where data say."""
        if (known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.rest)) is not None:
            return int(known[1])
        compare, holder = condition.root, condition
        inner = self._called(compare, "calls") if compare.kind == "fusion" else []
        if inner:
            compare, holder = inner[0].root, inner[0]
        if compare.kind != "compare":
            return None

        def outside(name: str) -> tuple[str, Computation]:  # a fusion's parameter is an operand of it
            source = holder.ops[name]
            if inner and source.kind == "parameter":
                return condition.root.operands[int(source.inside)], condition
            return name, holder

        sides = [outside(name) for name in compare.operands]
        direction = re.search(r"direction=(\w+)", compare.rest)
        index = _index(condition, sides[0][0]) if sides[0][1] is condition else None
        if direction is None or index is None:
            return None
        start = _constant(c, self._element(op, c, index))
        limit_at = _index(condition, sides[1][0]) if sides[1][1] is condition else None
        limit = _constant(*reversed(sides[1]))
        if limit is None and limit_at is not None and _index(body, body.root.operands[limit_at]) == limit_at:
            limit = _constant(c, self._element(op, c, limit_at))
        step = self._step(body, index)
        if start is None or limit is None or not step:
            return None
        span = limit - start + dict(LT=0, LE=1, GT=0, GE=-1, NE=0).get(direction[1], 0)
        return max(0, -(-span // step) if step > 0 else -(span // -step))

    def _element(self, op: Op, c: Computation, index: int) -> str:
        """Returns the name of an element of the tuple that a loop starts with."""
        source = c.ops[op.operands[0]]
        return source.operands[index] if source.kind == "tuple" else ""

    def _step(self, body: Computation, index: int) -> int | None:
        """Returns what a loop's body adds to its counter."""
        if body.root.kind != "tuple":
            return None
        op = body.ops[body.root.operands[index]]
        while op.kind in _SAME:
            op = body.ops[op.operands[0]]
        holder = body
        if op.kind == "fusion":
            outer, holder = op, self._called(op, "calls")[0]
            op = holder.root
            if op.kind != "add":
                return None
            constants = []
            for name in op.operands:
                source = holder.ops[name]
                at = outer.operands[int(source.inside)] if source.kind == "parameter" else None
                constants.append(_constant(body, at) if at is not None else _constant(holder, name))
        elif op.kind == "add":
            constants = [_constant(holder, name) for name in op.operands]
        else:
            return None
        found = [n for n in constants if n is not None]
        return found[0] if len(found) == 1 else None

    def _collective(self, kind: str, op: Op, c: Computation) -> Mapping:
        size, axes = _groups(op.rest, self.mesh)
        operands = sum(shape.bytes for name in op.operands if name in c.ops for shape in c.ops[name].shapes)
        if size == 1 or not operands:
            return {}
        return {("collective", kind, axes): operands, ("sent",): operands * _share(kind, size)}


def _share(kind: str, size: int) -> float:
    """Returns the bytes that a device sends for each byte of its operand, in a group of `size`."""
    if kind == "collective-permute":
        return 1.0
    if kind == "all-gather":
        return size - 1.0
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _as_reduce_scatter(sums: Counter) -> Counter:
    renamed = Counter(sums)
    for key in [key for key in sums if key[:2] == ("collective", "all-reduce")]:
        renamed["collective", "reduce-scatter", key[2]] += renamed.pop(key)
        renamed["sent",] /= 2
    return renamed


def _flops(flops: float, op: Op) -> Mapping:
    again = "rematted_computation" in op.rest or ".remat" in op.name
    return {("flops",): flops, ("recomputed",): flops if again else 0.0}


def _operand(op: Op, c: Computation, at: int) -> Shape:
    return c.ops[op.operands[at]].shapes[0]


def _ints(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [] if found is None else [int(n) for n in found[1].split(",") if n]


def _dot(op: Op, c: Computation) -> float:
    left = _operand(op, c, 0).dims
    contracted = np.prod([left[i] for i in _ints(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)], dtype=np.float64)
    return float(2 * np.prod(op.shapes[0].dims, dtype=np.float64) * contracted)


def _convolution(op: Op, c: Computation) -> float:
    """Counts pairs of a window's place and an element of it that read the input and not padding or holes: TPUs write
    batched dots as convolutions of which the most would be such."""
    left, right, out = _operand(op, c, 0).dims, _operand(op, c, 1).dims, op.shapes[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    assert labels is not None
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", op.rest) or ["", ""])[1]))
    places = [letter for letter in labels[3] if letter.isdigit()]

    def per_place(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(places)

    total = float(out[labels[3].index("b")]) * out[labels[3].index("f")] * right[labels[2].index("i")]
    groups = _ints(r"batch_group_count=(\d+)", op.rest)
    total /= groups[0] if groups else 1
    for place in sorted(places):
        i = int(place)
        stride, low = int(per_place("stride", "1")[i]), int(per_place("pad", "0_0")[i].split("_")[0])
        holes, apart = int(per_place("lhs_dilate", "1")[i]), int(per_place("rhs_dilate", "1")[i])
        at = np.arange(out[labels[3].index(place)])[:, None] * stride - low
        at = at + np.arange(right[labels[2].index(place)])[None, :] * apart
        inside = (at >= 0) & (at <= (left[labels[1].index(place)] - 1) * holes) & (at % holes == 0)
        total *= int(inside.sum())
    return 2 * total


def _constant(c: Computation, name: str) -> int | None:
    """Returns the value of an integer scalar that is written in the program."""
    op = c.ops.get(name)
    while op is not None and op.kind in _SAME:
        op = c.ops.get(op.operands[0])
    if op is None or op.kind != "constant" or not re.fullmatch(r"-?\d+", op.inside.strip()):
        return None
    return int(op.inside)


def _index(c: Computation, name: str) -> int | None:
    """Returns which element of the computation's parameter a value is."""
    op = c.ops.get(name)
    while op is not None and op.kind in _SAME:
        op = c.ops.get(op.operands[0])
    if op is None or op.kind != "get-tuple-element" or c.ops[op.operands[0]].kind != "parameter":
        return None
    found = re.search(r"index=(\d+)", op.rest)
    return None if found is None else int(found[1])


def _groups(rest: str, mesh: Mapping[str, int]) -> tuple[int, str]:
    """Returns (devices of a group, the mesh axes along which they differ) of a collective."""
    total = int(np.prod(list(mesh.values()), dtype=np.int64)) if mesh else 0
    if (pairs := re.search(r"source_target_pairs=\{\{([\d,{}]*)\}\}", rest)) is not None:
        groups = [[int(n) for n in pair.split(",")] for pair in pairs[1].split("},{")]
    elif (listed := re.search(r"replica_groups=\{\{([\d,{}]*)\}\}", rest)) is not None:
        groups = [[int(n) for n in group.split(",")] for group in listed[1].split("},{")]
    elif (iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)) is not None:
        shape, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
        ids = np.arange(np.prod(dims)).reshape(dims)
        groups = (ids.transpose(order) if order else ids).reshape(shape).tolist()
    elif (named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)) is not None:
        groups = _mesh_groups(named[1], named[2])
    else:
        groups = [list(range(total))]
    size = max(map(len, groups))
    if not mesh or max(map(max, groups)) >= total:
        return size, "?"
    coordinates = np.stack(np.unravel_index(np.arange(total), list(mesh.values())))
    differ = np.zeros(len(mesh), bool)
    for group in groups:
        differ |= np.ptp(coordinates[:, group], axis=1) > 0
    if not differ.any():
        return 1, ""
    return size, "+".join(axis for axis, yes in zip(mesh, differ, strict=True) if yes)


def _mesh_groups(axes: str, chosen: str) -> list[list[int]]:
    """Returns the groups of "'a'=2,'b'=4" along "'b'", or along a part of an axis, "'b':(2)2"."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
    parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", chosen)}
    names, dims = [], []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, size))
        names += [(name, 0), (name, 1), (name, 2)]
        dims += [before, part, size // before // part]
    along = [i for i, (name, which) in enumerate(names) if which == 1 and f"'{name}'" in chosen]
    ids = np.moveaxis(ids.reshape(dims), along, range(-len(along), 0))
    return ids.reshape(-1, int(np.prod([dims[i] for i in along]))).tolist()
