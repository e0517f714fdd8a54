"""The curves of a run's own methods as its workdir has them: a report imports no code from one."""

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
    """The curves of a variant's methods: `key` is of all that they depend on."""

    key: str
    stretch: tuple[float, ...] | None  # plain RoPE's frequency over the variant's, of each plane; inf: still
    reach: int  # tokens of the pass whose last token sees the distances
    distances: tuple[tuple[int, float], ...]  # true distance, and the one seen, nan where masked; none if all are true


def read(directory: Path) -> dict[str, Drawn]:
    """What was saved in a workdir, by variant; nothing where there is no file, or one that cannot be read."""
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
