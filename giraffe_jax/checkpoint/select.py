"""Which checkpoint of a workdir is meant: the last good one, the best one, one by its step."""

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from giraffe_jax.checkpoint.checksums import SUMS, _damage, _gather, damage
from giraffe_jax.checkpoint.folders import DAMAGED, MEASURED_ON, METRIC, Checkpoints, Say, _Steps
from giraffe_jax.config import ConfigError

# Which checkpoint


def steps(checkpoints: Checkpoints) -> list[int]:
    """Returns the steps of all committed checkpoints, in order, whether they are damaged or not.

    All else in the folder is ignored: files, other names, empty folders, half-written checkpoints of a killed run.
    """
    local_steps = sorted(entry.step for entry in _Steps().find_all(checkpoints.directory))
    return json.loads(_gather(json.dumps(local_steps))[0])


def latest_good(checkpoints: Checkpoints, say: Say = warnings.warn) -> int | None:
    """Returns the newest step that is not damaged, or None; reports each newer, damaged one through `say`."""
    bad: dict[int, str] = {}
    good = None
    for step in reversed(steps(checkpoints)):
        fault = damage(checkpoints, step)
        if fault is None:
            good = step
            break
        bad[step] = fault
    rest = "no other one is left" if good is None else f"going on from {good}"
    for step, fault in bad.items():
        say(f"{checkpoints.directory.parent}: checkpoint {step} is damaged ({fault}): {rest}")
    _say_unverified(checkpoints, good, say)
    return good


def find_step(checkpoints: Checkpoints, which: str | int | None = None, say: Say = warnings.warn) -> int:
    """Returns the step of the checkpoint that is asked for, verified.

    Args:
      which: None or "" for the newest undamaged one; a step, as a number or as text; "best" for the smallest eval_loss
        among the undamaged ones whose eval_loss was measured on the same data as the newest one's.
      say: receives a line for each damaged checkpoint that is skipped, and for one without checksums.

    Raises:
      ConfigError: there is no checkpoint; or the requested one is absent or damaged, naming those that there are.
    """
    where, saved = checkpoints.directory.parent, steps(checkpoints)
    if not saved:
        raise ConfigError(f"{where}: holds no checkpoint.")
    if which in (None, ""):
        step = latest_good(checkpoints, say)
        if step is None:
            fault = damage(checkpoints, saved[-1])
            raise ConfigError(f"{where}: all of its checkpoints are damaged: {_listed(saved)}; of the newest, {fault}.")
        return step
    if which == "best":
        step = _best(checkpoints, saved, say)
    elif isinstance(which, int) or re.fullmatch(r"[0-9]{1,18}", which):
        step = int(which)
        if step not in saved:
            raise ConfigError(f"{where}: holds no checkpoint {step}; there are {_listed(saved)}.")
        fault = damage(checkpoints, step)
        if fault is not None:
            near = sorted((other for other in saved if other != step), key=lambda other: (abs(other - step), other))
            good = next((other for other in near if damage(checkpoints, other) is None), None)
            rest = "no other one is good" if good is None else f"the nearest good one is {good}"
            raise ConfigError(f"{where}: checkpoint {step} is damaged ({fault}); {rest}.")
    else:
        raise ConfigError(f'{where}: got {which!r} for a checkpoint; allowed: {_listed(saved)}, "best".')
    _say_unverified(checkpoints, step, say)
    return step


def best_loss(checkpoints: Checkpoints, only: Mapping[str, float]) -> float:
    """Returns the smallest eval_loss of the checkpoints whose metrics include `only`; infinity if there is none."""
    metrics = [checkpoints.metrics(step) or {} for step in steps(checkpoints)]
    losses = [x[METRIC] for x in metrics if METRIC in x and all(x.get(key) == value for key, value in only.items())]
    return json.loads(_gather(json.dumps(min(filter(math.isfinite, losses), default=math.inf)))[0])


def _best(checkpoints: Checkpoints, saved: list[int], say: Say) -> int:
    losses: dict[int, tuple[float, Any]] = {}
    for step in saved:
        fault = _damage(checkpoints, step, "metrics/")
        if fault is not None:
            say(f"{checkpoints.directory.parent}: checkpoint {step} is damaged ({fault}): not considered for the best")
            continue
        metrics = checkpoints.metrics(step) or {}
        loss = metrics.get(METRIC)
        if loss is not None and math.isfinite(loss):
            losses[step] = loss, metrics.get(MEASURED_ON)
    data = losses[max(losses)][1] if losses else None
    for step in [step for step in losses if losses[step][1] != data]:
        del losses[step]
    for step in sorted(losses, key=lambda step: (losses[step][0], -step)):
        fault = damage(checkpoints, step)
        if fault is None:
            return step
        say(f"{checkpoints.directory.parent}: checkpoint {step}, the best, is damaged ({fault}): taking the next best")
    raise ConfigError(
        f"{checkpoints.directory.parent}: no good checkpoint was saved with {METRIC}, by which the best is chosen; a "
        f"run saves it if its config has eval_data. There are {_listed(saved)}."
    )


def _listed(saved: list[int]) -> str:
    shown = saved if len(saved) <= 12 else [*saved[:3], "...", *saved[-8:]]
    return ", ".join(map(str, shown))


def _say_unverified(checkpoints: Checkpoints, step: int | None, say: Say) -> None:
    if step is not None and not (checkpoints.directory / str(step) / SUMS).exists():
        say(f"{checkpoints.directory.parent}: checkpoint {step} has no {SUMS} to verify it by: used as it is")


def set_aside(checkpoints: Checkpoints, step: int) -> str:
    """Moves the checkpoint of a step to workdir/damaged/<step>, or <step>.1 and so on, and returns where it is now.

    For a run that resumes from an earlier step: orbax does not overwrite a step that exists.
    """
    checkpoints.wait_until_finished()
    target = checkpoints.directory.parent / DAMAGED / str(step)
    if jax.process_index() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while target.exists():
            number += 1
            target = target.with_name(f"{step}.{number}")
        (checkpoints.directory / str(step)).rename(target)
    place = _gather(str(target))[0]  # the others wait here
    checkpoints.verified.discard(step)
    checkpoints.reload()
    return place


def split_source(source: str) -> tuple[str, str]:
    """Returns ("runs/a", "1000") for "runs/a@1000", ("runs/a", "best") for "runs/a@best", else (source, "").

    An existing path with @ in its name is not split.

    Raises:
      ConfigError: an empty source.
    """
    if not source.strip():
        raise ConfigError(f"source: got {source!r}, expected a directory, a .gguf file or a packaged model's name.")
    match = re.fullmatch(r"(.+)@([0-9]{1,18}|best)", source, re.DOTALL)
    if match is None or ("://" not in source and Path(source).exists()):
        return source, ""
    return match[1], match[2]
