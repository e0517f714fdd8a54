"""Trip counts of the loops of a compiled module."""

import re
from collections.abc import Mapping

from giraffe_jax.plan.module import Computation, Op, called

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


def trips(computations: Mapping[str, Computation], op: Op, c: Computation) -> int | None:
    """Returns the trip count of a loop: XLA's own, or from its counter's start, limit and step; None if it depends on
    data.

    Args:
      computations: of the module.
      op: a while instruction.
      c: the computation that contains it.
    """
    if (known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes)) is not None:
        return int(known[1])
    (body,), (condition,) = called(computations, op, "body"), called(computations, op, "condition")
    compare, holder = condition.root, condition
    inner = called(computations, compare, "calls") if compare.kind == "fusion" else []
    if inner:
        compare, holder = inner[0].root, inner[0]
    if compare.kind != "compare":
        return None

    def outside(name: str) -> tuple[str, Computation]:  # a parameter of a fusion is one of its operands
        source = holder.ops[name]
        if inner and source.kind == "parameter":
            return condition.root.operands[int(source.inside)], condition
        return name, holder

    sides = [outside(name) for name in compare.operands]
    direction = re.search(r"direction=(\w+)", compare.attributes)
    index = _index(condition, sides[0][0]) if sides[0][1] is condition else None
    if direction is None or index is None:
        return None
    start = _constant(c, _element(op, c, index))
    limit_at = _index(condition, sides[1][0]) if sides[1][1] is condition else None
    limit = _constant(sides[1][1], sides[1][0])
    if limit is None and limit_at is not None and _index(body, body.root.operands[limit_at]) == limit_at:
        limit = _constant(c, _element(op, c, limit_at))
    step = _step(computations, body, index)
    if start is None or limit is None or not step:
        return None
    span = limit - start + dict(LT=0, LE=1, GT=0, GE=-1, NE=0).get(direction[1], 0)
    return max(0, -(-span // step) if step > 0 else -(span // -step))


def _element(op: Op, c: Computation, index: int) -> str:
    """Returns the name of an element of a loop's initial tuple."""
    source = c.ops[op.operands[0]]
    return source.operands[index] if source.kind == "tuple" else ""


def _step(computations: Mapping[str, Computation], body: Computation, index: int) -> int | None:
    """Returns the constant that a loop's body adds to its counter, None if there is none."""
    if body.root.kind != "tuple":
        return None
    op = body.ops[body.root.operands[index]]
    while op.kind in _SAME:
        op = body.ops[op.operands[0]]
    holder = body
    if op.kind == "fusion":
        outer, holder = op, called(computations, op, "calls")[0]
        op = holder.root
        if op.kind != "add":
            return None
        constants = []
        for name in op.operands:
            source = holder.ops[name]
            operand = outer.operands[int(source.inside)] if source.kind == "parameter" else None
            constants.append(_constant(body, operand) if operand is not None else _constant(holder, name))
    elif op.kind == "add":
        constants = [_constant(holder, name) for name in op.operands]
    else:
        return None
    steps = [n for n in constants if n is not None]
    return steps[0] if len(steps) == 1 else None


def _constant(c: Computation, name: str) -> int | None:
    """Returns the value of an integer constant, None if `name` is not one."""
    op = c.ops.get(name)
    while op is not None and op.kind in _SAME:
        op = c.ops.get(op.operands[0])
    if op is None or op.kind != "constant" or not re.fullmatch(r"-?\d+", op.inside.strip()):
        return None
    return int(op.inside)


def _index(c: Computation, name: str) -> int | None:
    """Returns which element of the computation's parameter tuple a value is, None if it is not one."""
    op = c.ops.get(name)
    while op is not None and op.kind in _SAME:
        op = c.ops.get(op.operands[0])
    if op is None or op.kind != "get-tuple-element" or c.ops[op.operands[0]].kind != "parameter":
        return None
    match = re.search(r"index=(\d+)", op.attributes)
    return None if match is None else int(match[1])
