"""Counts FLOPs and bytes of collectives in the optimised HLO of one device.

XLA's `cost_analysis` counts the body of a loop once, which is a few percent of the FLOPs of a model scanned over its
layers. Here dots and convolutions are multiplied by the trip counts of the loops around them. For a loop whose trip
count depends on data (blockwise attention over the blocks of keys that a block of queries sees), the caller gives it.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from giraffe_jax.plan.calls import kernel_of, stated
from giraffe_jax.plan.groups import groups_of, nodes_of
from giraffe_jax.plan.module import Computation, Op, Shape, called, parse
from giraffe_jax.plan.trips import trips

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")
Sums = defaultdict[tuple[str, ...], float]  # ("flops",), ("recomputed",), ("sent",), ("collective", kind, axes)...
_AGAIN = "rematted_computation"  # part of the names that JAX gives to recomputation by a remat policy


@dataclasses.dataclass(frozen=True)
class Counts:
    """The work of one device in one run of a program."""

    flops: float  # of matmuls, two per multiply-add
    recomputed: float  # the part of `flops` recomputed by a remat policy, or by XLA to save memory
    collectives: Mapping[tuple[str, str], float]  # (kind, mesh axes): bytes of operands
    sent: float  # bytes that collectives send from the device, by the algorithms that send least
    between: float  # the part of `sent` that leaves the device's node
    data_loops: int  # number of loops counted with `data_trips`
    uncounted: tuple[str, ...]  # custom calls of kernels whose FLOPs are unknown


def count(
    text: str,
    mesh: Mapping[str, int] | None = None,
    data_trips: float = 1.0,
    kernels: Mapping[str, float] = {},
    node: int = 0,
) -> Counts:
    """Returns the work of a program. Of the branches of a conditional, the one with the most FLOPs is counted.

    Args:
      text: of an optimised module, `compiled.as_text()`.
      mesh: axes and sizes, in the order of the devices that it was compiled for; names the axes of collectives.
      data_trips: mean trip count of loops whose trip count is not in the program.
      kernels: FLOPs per call of kernels, by name.
      node: devices per node, in device order; 0 if all are on one network.
    """
    walk = _Walk(parse(text), dict(mesh or {}), data_trips, kernels, node)
    totals = walk.of(walk.entry)
    sums = {(key[1], key[2]): value for key, value in totals.items() if key[0] == "collective"}
    uncounted = tuple(sorted(key[1] for key in totals if key[0] == "kernel"))
    numbers = totals["flops",], totals["recomputed",], sums, totals["sent",], totals["between",]
    return Counts(*numbers, data_loops=len(walk.data_loops), uncounted=uncounted)


class _Walk:
    def __init__(
        self,
        computations: Mapping[str, Computation],
        mesh: Mapping[str, int],
        data_trips: float,
        kernels: Mapping[str, float],
        node: int,
    ):
        self.computations, self.mesh, self.data_trips = computations, mesh, data_trips
        self.kernels, self.node = kernels, node
        self.entry = computations[""]
        self.data_loops: set[str] = set()
        self._sums: dict[int, Sums] = {}

    def of(self, computation: Computation) -> Sums:
        """Returns the sums over one run of a computation."""
        key = id(computation.ops)
        if key not in self._sums:
            total: Sums = defaultdict(float)
            for op in computation.ops.values():
                for name, value in self._of_op(op, computation).items():
                    total[name] += value
            self._sums[key] = total
        return self._sums[key]

    def _of_op(self, op: Op, c: Computation) -> Mapping:
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(kind, op, c)
        if kind in ("dot", "convolution"):
            flops = _dot(op, c) if kind == "dot" else _convolution(op, c)
            return _flops(flops, op)
        if kind == "while":
            return self._loop(op, c)
        if kind == "conditional":
            keys = "branch_computations|true_computation|false_computation"
            branches = [self.of(branch) for branch in called(self.computations, op, keys)]
            return max(branches, key=lambda sums: sums["flops",], default={})
        if kind == "custom-call":
            return self._custom_call(op, c)
        if kind in ("fusion", "call", "async"):
            sums: Sums = defaultdict(float)
            for inner in called(self.computations, op, "calls|to_apply|called_computations"):
                for name, value in self.of(inner).items():
                    sums[name] += value
            if "all-reduce-scatter" in op.name:  # XLA's way to write a fused reduce-scatter
                sums = _as_reduce_scatter(sums)
            return _all_again(sums) if ".remat" in op.name or (op.kind == "call" and _AGAIN in op.attributes) else sums
        return {}

    def _custom_call(self, op: Op, c: Computation) -> Mapping:
        kernel = kernel_of(op)
        known = self.kernels.get(kernel or "")
        flops = stated(op, c) if known is None else known
        if flops is not None:
            return _flops(flops, op)
        return {} if kernel is None else {("kernel", op.name): 1.0}

    def _loop(self, op: Op, c: Computation) -> Mapping:
        (body,), (condition,) = called(self.computations, op, "body"), called(self.computations, op, "condition")
        times_round = trips(self.computations, op, c)
        if times_round is None:
            self.data_loops.add(op.name)
            times_round = self.data_trips
        total: Sums = defaultdict(float)
        for inner, times in ((body, times_round), (condition, times_round + 1)):
            for name, value in self.of(inner).items():
                total[name] += value * times
        return _all_again(total) if _AGAIN in op.attributes else total

    def _collective(self, kind: str, op: Op, c: Computation) -> Mapping:
        size, axes = groups_of(op.attributes, self.mesh)
        operands = sum(shape.bytes for name in op.operands if name in c.ops for shape in c.ops[name].shapes)
        if size == 1 or not operands:
            return {}
        nodes = nodes_of(op.attributes, self.mesh, self.node)
        between = operands * _between(kind, nodes, size)
        return {("collective", kind, axes): operands, ("sent",): operands * _share(kind, size), ("between",): between}


def _share(kind: str, size: int) -> float:
    """Returns the bytes that a device sends for each byte of its operand, in a group of `size`."""
    if kind == "collective-permute":
        return 1.0
    if kind == "all-gather":
        return size - 1.0
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _between(kind: str, nodes: int, size: int) -> float:
    """Returns the bytes, per byte of operand, that leave the device's node: each device of a node sends its part by its
    own adapter, and data that all of them need crosses once."""
    if nodes == 1:
        return 0.0
    share = _share(kind, nodes)
    return share * nodes / size if kind in ("all-reduce", "reduce-scatter") else share


def _as_reduce_scatter(sums: Sums) -> Sums:
    renamed = defaultdict(float, sums)
    for key in [key for key in sums if key[:2] == ("collective", "all-reduce")]:
        renamed["collective", "reduce-scatter", key[2]] += renamed.pop(key)
        renamed["sent",] /= 2
        renamed["between",] /= 2
    return renamed


def _flops(flops: float, op: Op) -> Mapping:
    recomputed = _AGAIN in op.attributes or ".remat" in op.name
    return {("flops",): flops, ("recomputed",): flops if recomputed else 0.0}


def _all_again(sums: Sums) -> Sums:
    """Marks all FLOPs of a loop or call as recomputed; the instructions inside it are not always marked themselves."""
    sums["recomputed",] = sums["flops",]
    return sums


def _operand(op: Op, c: Computation, at: int) -> Shape:
    return c.ops[op.operands[at]].shapes[0]


def _ints(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    return [] if match is None else [int(n) for n in match[1].split(",") if n]


def _dot(op: Op, c: Computation) -> float:
    lhs = _operand(op, c, 0).dims
    contracted = np.prod([lhs[i] for i in _ints(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)], dtype=np.float64)
    return float(2 * np.prod(op.shapes[0].dims, dtype=np.float64) * contracted)


def _convolution(op: Op, c: Computation) -> float:
    """Returns the FLOPs of a convolution, counting only window elements that read the input and not padding or dilation
    holes: XLA on TPUs writes batched dots as convolutions that mostly read those."""
    lhs, rhs, out = _operand(op, c, 0).dims, _operand(op, c, 1).dims, op.shapes[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    assert labels is not None
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", op.attributes) or ["", ""])[1]))
    places = [letter for letter in labels[3] if letter.isdigit()]

    def per_place(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(places)

    total = float(out[labels[3].index("b")]) * out[labels[3].index("f")] * rhs[labels[2].index("i")]
    groups = _ints(r"batch_group_count=(\d+)", op.attributes)
    total /= groups[0] if groups else 1
    for place in sorted(places):
        i = int(place)
        stride, low = int(per_place("stride", "1")[i]), int(per_place("pad", "0_0")[i].split("_")[0])
        lhs_dilation, rhs_dilation = int(per_place("lhs_dilate", "1")[i]), int(per_place("rhs_dilate", "1")[i])
        positions = np.arange(out[labels[3].index(place)])[:, None] * stride - low
        positions = positions + np.arange(rhs[labels[2].index(place)])[None, :] * rhs_dilation
        valid = (
            (positions >= 0)
            & (positions <= (lhs[labels[1].index(place)] - 1) * lhs_dilation)
            & (positions % lhs_dilation == 0)
        )
        total *= int(valid.sum())
    return 2 * total
