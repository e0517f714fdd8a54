"""Training curves of the variants, loss against step, from WORKDIR/train/*/metrics.jsonl."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax import records

POINTS = 200  # most points of a line; with more steps, each point is a mean of several


@dataclasses.dataclass(frozen=True)
class Curve:
    """The losses of one run by step, in nats per token: of its batches, and of held-out text if measured."""

    batches: Mapping[int, float]
    held_out: Mapping[int, float]
    seed: int | None = None  # None if the experiment has a single seed


def read(directory: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[Curve, ...]]:
    """Returns the curves of each trained variant, one per seed; missing runs are skipped."""
    if not (directory / "train").is_dir():
        return {}
    config = manifest.get("config", {})
    by_variant = {}
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
            by_variant[entry["name"]] = curves
    return by_variant


def curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Returns the losses in the rows: of a repeated step the last one; non-finite ones are skipped."""

    def of(name: str) -> dict[int, float]:
        return {row["step"]: float(row[name]) for row in rows if "step" in row and row.get(name) is not None}

    return Curve(of("loss"), of("eval_loss"))


def points(losses: Mapping[int, float], most: int = POINTS) -> tuple[list[float], list[float]]:
    """Returns steps and losses in order, averaged over neighbouring steps to give at most `most` points."""
    steps = sorted(losses)
    size = max(1, math.ceil(len(steps) / most))
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    return [sum(g) / len(g) for g in groups], [sum(losses[s] for s in g) / len(g) for g in groups]
