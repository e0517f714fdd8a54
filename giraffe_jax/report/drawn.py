"""Reads the curves that a run has saved of its methods (see `draw`): a report imports no code from a workdir."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer import read_json

FILE = "drawn.json"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The curves of a variant's methods; `key` is a digest of everything they depend on."""

    key: str
    stretch: tuple[float, ...] | None  # per plane, plain RoPE's frequency over the variant's; inf: does not rotate
    reach: int  # tokens of the pass in which distances were measured
    distances: tuple[tuple[int, float], ...]  # (true distance, distance seen), nan if masked; empty if all are equal


def read(directory: Path) -> dict[str, Drawn]:
    """Returns the saved curves of a workdir, by variant; empty if there is no file or it cannot be read (a warning)."""
    if not (directory / FILE).is_file():
        return {}
    try:
        return {str(variant): _drawn(value) for variant, value in read_json(directory / FILE).items()}
    except (ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
        warnings.warn(f"{directory / FILE} is left out: {error}", stacklevel=2)
        return {}


def _drawn(value: Any) -> Drawn:
    planes = value["stretch"]
    stretch = None if planes is None else tuple(math.inf if x is None else float(x) for x in planes)
    distances = tuple((int(true), math.nan if seen is None else float(seen)) for true, seen in value["distances"])
    reach = int(value["reach"])
    if reach < 1 or (stretch is not None and not (stretch and all(stretch))):
        raise ValueError(f"reach {reach} and stretch {planes}: expected one token or more, and planes that are not 0")
    return Drawn(str(value["key"]), stretch, reach, distances)
