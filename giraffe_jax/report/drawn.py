"""What a run draws of its variants' methods and leaves in the workdir: a report imports no code from one.

Of a method of one's own the stretch of each plane; of it, and of methods that change distances, the distance at which
the last token sees each earlier one, as attention gives it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer import read_json

FILE = "drawn.json"
REACH = 4096  # tokens at most of the pass in which distances are measured, which takes memory with their square
POINTS = 160  # of a curve


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The curves of a variant's methods: `key` is of all that they depend on."""

    key: str
    stretch: tuple[float, ...] | None  # plain RoPE's frequency over the variant's, of each plane; inf: still
    reach: int  # tokens of the pass whose last token sees the distances
    distances: tuple[tuple[int, float], ...]  # true distance, and the one seen, nan where masked; none if all are true


def save(workdir: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the curves of an experiment's variants, those that changed anew; methods must be importable here."""
    from giraffe_jax import positions, records
    from giraffe_jax.report import variants

    config, model = manifest["config"], manifest.get("model") or {}
    shape = {name: model.get(name) for name in ("head_dim", "theta", "original_len")}
    if None in shape.values():
        return
    longest = max(length for task in config["tasks"] for length in task["lengths"])
    old, made = read(workdir), {}
    for entry in config["variants"]:
        methods = variants.evaluated(entry)
        if not {"own", "bands", "mask"} & set(variants.kinds(methods)):
            continue
        known = old.get(entry["name"])
        try:
            positions.check(methods)  # imports them: only then are their sources known
            key = records.digest([methods, positions.sources(methods), shape, longest])
            made[entry["name"]] = known if known and known.key == key else draw(methods, shape, longest, key)
        except Exception:  # a drawing ends no run: where the method itself fails, measuring it says how
            continue
    if made != old:
        records.write_atomically(workdir / FILE, json.dumps({v: _plain(d) for v, d in made.items()}) + "\n")


def draw(methods: Sequence[Mapping[str, Any]], shape: Mapping[str, Any], length: int, key: str = "") -> Drawn:
    """The curves of methods in a model (head_dim, theta, original_len) at a length in tokens."""
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


def read(directory: Path) -> dict[str, Drawn]:
    """What was saved in a workdir, by variant; nothing where there is no file, or one that cannot be read."""
    if not (directory / FILE).is_file():
        return {}
    try:
        return {str(variant): _drawn(value) for variant, value in read_json(directory / FILE).items()}
    except (ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
        warnings.warn(f"{directory / FILE} is left out: {error}", stacklevel=2)
        return {}


def _plain(drawn: Drawn) -> dict[str, Any]:
    """As JSON has it, without infinity and nan."""

    def number(x: float) -> float | None:
        return float(f"{x:.6g}") if math.isfinite(x) else None

    return {
        "key": drawn.key,
        "stretch": None if drawn.stretch is None else [number(x) for x in drawn.stretch],
        "reach": drawn.reach,
        "distances": [[true, number(seen)] for true, seen in drawn.distances],
    }


def _drawn(value: Any) -> Drawn:
    planes = value["stretch"]
    stretch = None if planes is None else tuple(math.inf if x is None else float(x) for x in planes)
    distances = tuple((int(true), math.nan if seen is None else float(seen)) for true, seen in value["distances"])
    reach = int(value["reach"])
    if reach < 1 or (stretch is not None and not (stretch and all(stretch))):
        raise ValueError(f"reach {reach} and stretch {planes}: expected one token or more, and planes that are not 0")
    return Drawn(str(value["key"]), stretch, reach, distances)
