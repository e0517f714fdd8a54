"""The groups of devices of a compiled module's collectives, as mesh axes."""

import re
from collections.abc import Mapping

import numpy as np


def groups_of(attributes: str, mesh: Mapping[str, int]) -> tuple[int, str]:
    """Returns a collective's (group size, mesh axes that it runs over).

    Args:
      attributes: text of the instruction after its operands.
      mesh: axes and their sizes, in device order.
    """
    total, groups = _groups(attributes, mesh)
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


def nodes_of(attributes: str, mesh: Mapping[str, int], node: int) -> int:
    """Returns how many nodes the largest group of a collective spans; `node`: devices per node, 0 for a single node."""
    if node == 0:
        return 1
    return max(len({device // node for device in group}) for group in _groups(attributes, mesh)[1])


def _groups(attributes: str, mesh: Mapping[str, int]) -> tuple[int, list[list[int]]]:
    """Returns the number of devices, and the groups of a collective as device indices."""
    total = int(np.prod(list(mesh.values()), dtype=np.int64)) if mesh else 0
    if (pairs := re.search(r"source_target_pairs=\{\{([\d,{}]*)\}\}", attributes)) is not None:
        groups = [[int(n) for n in pair.split(",")] for pair in pairs[1].split("},{")]
    elif (listed := re.search(r"replica_groups=\{\{([\d,{}]*)\}\}", attributes)) is not None:
        groups = [[int(n) for n in group.split(",")] for group in listed[1].split("},{")]
    elif (iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)) is not None:
        shape, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
        ids = np.arange(np.prod(dims)).reshape(dims)
        groups = (ids.transpose(order) if order else ids).reshape(shape).tolist()
    elif (named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)) is not None:
        groups = _mesh_groups(named[1], named[2])
    else:
        groups = [list(range(total))]
    return total, groups


def _mesh_groups(axes: str, chosen: str) -> list[list[int]]:
    """Returns the groups of a mesh "'a'=2,'b'=4" along "'b'", or along a part of an axis, "'b':(2)2"."""
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
