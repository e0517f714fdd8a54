"""Curves of the variants' methods, computed by a run and saved in its workdir: a report imports no code from there.

For a user's method, the stretch of each plane. For a user's method and for methods that change distances, the distance
at which the last token sees each earlier one, measured through attention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.report.drawn import FILE, Drawn, read

REACH = 4096  # most tokens of the pass that measures distances, whose memory grows with their square
POINTS = 160  # points of a curve


def save(workdir: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the curves of an experiment's variants, computing only changed ones; methods must be importable here."""
    from giraffe_jax import positions, records
    from giraffe_jax.report import variants

    config, model = manifest["config"], manifest.get("model") or {}
    shape = {name: model.get(name) for name in ("head_dim", "theta", "original_len")}
    if None in shape.values():
        return
    longest = max(length for task in config["tasks"] for length in task["lengths"])
    old, curves = read(workdir), {}
    for entry in config["variants"]:
        methods = variants.evaluated(entry)
        if not {"own", "bands", "mask"} & set(variants.kinds(methods)):
            continue
        known = old.get(entry["name"])
        try:
            positions.check(methods)  # imports them: only then are their sources known
            key = records.digest([methods, positions.sources(methods), shape, longest])
            curves[entry["name"]] = known if known and known.key == key else draw(methods, shape, longest, key)
        except Exception:  # a curve must not stop the run; if the method is broken, its evaluation reports the error
            continue
    if curves != old:
        records.write_atomically(workdir / FILE, json.dumps({v: _plain(d) for v, d in curves.items()}) + "\n")


def draw(methods: Sequence[Mapping[str, Any]], shape: Mapping[str, Any], length: int, key: str = "") -> Drawn:
    """Returns the curves of methods for a model `shape` (head_dim, theta, original_len) at a length in tokens."""
    from giraffe_jax import positions

    plain, bound = positions.bind([], **shape), positions.bind(methods, **shape, length=length)
    stretch = None
    if not bound.pending and bound.inv_freq.shape == plain.inv_freq.shape:  # else they differ from token to token
        with np.errstate(divide="ignore"):
            stretch = tuple((np.asarray(plain.inv_freq, np.float64) / bound.inv_freq).tolist())
    reach = min(length, REACH)
    seen = positions.distances(methods, length=reach, queries=[reach - 1], **shape)[0, ::-1]
    true = np.arange(reach)
    same = bool((np.abs(seen - true) <= 1e-3 * reach).all())  # of nan nothing is
    points = [] if same else np.unique(np.linspace(0, reach - 1, POINTS).round().astype(int)).tolist()
    return Drawn(key, stretch, reach, tuple((point, float(seen[point])) for point in points))


def _plain(drawn: Drawn) -> dict[str, Any]:
    """Returns the curves as JSON values, with null for infinity and nan."""

    def number(x: float) -> float | None:
        return float(f"{x:.6g}") if math.isfinite(x) else None

    return {
        "key": drawn.key,
        "stretch": None if drawn.stretch is None else [number(x) for x in drawn.stretch],
        "reach": drawn.reach,
        "distances": [[true, number(seen)] for true, seen in drawn.distances],
    }
