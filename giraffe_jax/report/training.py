"""What the training of variants wrote down, WORKDIR/train/*/metrics.jsonl, as curves of loss against step."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax import records

POINTS = 200  # of a line at most; of more steps each point is a mean


@dataclasses.dataclass(frozen=True)
class Curve:
    """The losses of one run by step: of its batches, and of held-out text where that was measured."""

    batches: Mapping[int, float]
    held_out: Mapping[int, float]
    seed: int | None = None  # None of an experiment's only one


def read(directory: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[Curve, ...]]:
    """The curves of each trained variant, one per seed; nothing of runs that are not there."""
    if not (directory / "train").is_dir():
        return {}
    config = manifest.get("config", {})
    found = {}
    for entry in (entry for entry in config.get("variants", ()) if entry.get("train") is not None):
        seeds = (None, *config.get("seeds", ()))
        files = {s: directory / "train" / records.slug(entry["name"], s) / "metrics.jsonl" for s in seeds}
        curves = [
            dataclasses.replace(curve(list(records.read_rows(file, warnings.warn))), seed=seed)
            for seed, file in files.items()
            if file.is_file()
        ]
        curves = tuple(one for one in curves if one.batches)
        if curves:
            found[entry["name"]] = curves
    return found


def curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """The losses that rows hold; of a step that was made again the last, none that is not finite."""

    def of(name: str) -> dict[int, float]:
        return {row["step"]: float(row[name]) for row in rows if "step" in row and row.get(name) is not None}

    return Curve(of("loss"), of("eval_loss"))


def points(losses: Mapping[int, float], most: int = POINTS) -> tuple[list[float], list[float]]:
    """Steps and losses in order; the means of as many neighbours as leave at most so many points."""
    steps = sorted(losses)
    size = max(1, math.ceil(len(steps) / most))
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    return [sum(g) / len(g) for g in groups], [sum(losses[s] for s in g) / len(g) for g in groups]
