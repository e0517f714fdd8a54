"""A workdir: to which run, search or experiment it belongs, and which settings may change when that is resumed.

Settings that affect results must match. Settings of execution, saving and evaluation may change. The number of steps
may change to any while nothing is saved; after that only if no finished step would have had another learning rate.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from giraffe_jax import checkpoint, identity, positions
from giraffe_jax.checkpoint import METHODS, TOKENIZER
from giraffe_jax.config import ConfigError
from giraffe_jax.records import write_atomically
from giraffe_jax.tokenizer import Tokenizer
from giraffe_jax.tokenizer import read_json as read_object

CONFIG = "config.json"
CONTENTS = "contents.json"  # of an experiment's training: what it depends on (identity.py)
DATA = "data_fingerprint"  # in a run's config.json: a hash of the data, which paths do not identify
MAY_CHANGE = re.compile(
    r"(mesh|loss_chunk|save_every|keep|eval_data|eval_every|eval_batches|tokenizer"
    r"|model\.(attention|block_size|context|remat|mlp_chunk)|data\.(cache_dir|prefetch)"
    r"|data\.(stages\[\d+\]\.)?sources\[\d+\]\.path)(\..*)?"
)


def claim(workdir: Path, resolved: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, tuple]:
    """Writes config.json, tokenizer and own methods into a new workdir, or checks that an existing one is of this run.

    Returns:
      {"mesh.fsdp": (old, new), ...}: the changed keys, all of which may change. config.json keeps the old values until
      the caller has logged the change and calls `write_config`.

    Raises:
      ConfigError: the workdir holds another run; names the first key that differs, and what can be done.
    """
    file, new = workdir / CONFIG, json.loads(json.dumps(resolved))
    methods = positions.sources([new.get("model", {}).get("positions", []), new.get("starts", [])])
    changed: dict[str, tuple] = {}
    if file.is_file():
        recorded = read_json(file, "a run's config")
        changed = check_same(workdir, "run", recorded, new, lambda key: key == "steps" or MAY_CHANGE.fullmatch(key))
        for path, text in methods.items():
            saved = workdir / METHODS / path
            if saved.is_file() and not _same(text, saved):
                raise ConfigError(
                    f"--workdir: {workdir} holds a run with another version of {path}, saved in {saved}. Restore that "
                    "version to resume the run, or train with the current code in another workdir; there "
                    f'source="{workdir}@STEP" starts from the weights of this run.'
                )
        if "steps" in changed and isinstance(recorded.get("steps"), int):
            _check_steps(workdir, recorded["steps"], new)
    elif (workdir / checkpoint.FOLDER).exists():
        raise ConfigError(f"--workdir: {workdir} has checkpoints but no {CONFIG}: not a run that can be continued.")
    else:
        if jax.process_index() == 0:
            for name, content in tokenizer.files().items():
                write_atomically(workdir / TOKENIZER / name, content)
        write_config(workdir, resolved)
    if jax.process_index() == 0:
        for path, text in methods.items():
            if not (workdir / METHODS / path).is_file():  # an older run has only the files that its config names
                write_atomically(workdir / METHODS / path, text)
    return changed


def stale(where: Path, now: Mapping[str, str], scaling: Any) -> list[str]:
    """Returns what has changed since a variant's training in the folder `where` began, according to its
    `contents.json`; [] if no change is known. Without that file only the source texts of own position methods are
    compared."""
    if (where / CONTENTS).is_file():
        return identity.changes(read_json(where / CONTENTS, "what a training began with"), now)
    saved = [(path, text, where / METHODS / path) for path, text in positions.sources(scaling).items()]
    return [f"code {path}" for path, text, file in saved if file.is_file() and not _same(text, file)]


def _same(text: str, file: Path) -> bool:
    return positions.same(text, importlib.util.decode_source(file.read_bytes()))


def write_config(workdir: Path, resolved: Mapping[str, Any]) -> None:
    """Writes config.json; process 0 does."""
    if jax.process_index() == 0:
        write_atomically(workdir / CONFIG, json.dumps(resolved, indent=2) + "\n")


def read_json(file: Path, description: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the object that a JSON file of a workdir holds.

    Raises ConfigError if it is not a JSON object, or one of `keys` is not an object in it. `description`: what the
    file should be, for the message.
    """
    try:
        content = read_object(file)
        lacking = [key for key in keys if not isinstance(content.get(key), dict)]
        if not lacking:
            return content
        error = "it lacks " + ", ".join(lacking)
    except ConfigError as e:
        error = str(e).removeprefix(f"{file}: ").rstrip(".")
    raise ConfigError(f"--workdir: {file} is not {description} ({error}). Choose another one.")


def check_same(
    workdir: Path, kind: str, old: Any, new: Any, may_change: Callable[[str], Any] = lambda key: False
) -> dict[str, tuple]:
    """Returns the differences between the recorded config of a workdir and the config of now; see `differences`.

    Raises:
      ConfigError: a key that may not change has changed; names the first one, and both values.
    """
    changed = differences(old, new)
    for key, (was, now) in sorted(changed.items()):
        if may_change(key):
            continue
        reason = f"config.{key} was {_short(was)}, now {_short(now)}"
        if key == DATA:
            reason = "its data is not the same: files, tokenizer, or what config.data says of them"
        raise ConfigError(
            f"--workdir: {workdir} holds another {kind}: {reason}. Choose another one, or delete this one."
        )
    return changed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple]:
    """Returns {"optim.lr": (old, new), "data.sources[0].path": ...} of two nested configs."""
    changed: dict[str, tuple] = {}
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            changed |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (was, now) in enumerate(zip(old, new, strict=True)):
            changed |= differences(was, now, f"{where}[{i}]")
    elif old != new and not (old is None and new is False):  # a switch that is newer than the old config, and off
        changed[where] = old, new
    return changed


def _check_steps(workdir: Path, old_steps: int, config: Mapping[str, Any]) -> None:
    """Raises ConfigError if the new number of steps would have changed the learning rate of a finished step."""
    steps, optim = config["steps"], config.get("optim", {})
    if not (workdir / checkpoint.FOLDER).is_dir():
        return
    with checkpoint.manager(workdir) as checkpoints:
        done = (checkpoint.steps(checkpoints) or [0])[-1]
    where = f"--workdir: {workdir} holds a run of {old_steps} steps, {done} of them done; config.steps is now {steps}"
    if steps < done:
        raise ConfigError(f"{where}: fewer than are done. Its checkpoints are sources: {workdir}@STEP.")
    if done == 0 or optim.get("schedule", "constant") == "constant":
        return
    decay = optim.get("decay_steps")
    if decay is not None and max(done, optim["warmup_steps"]) <= min(old_steps, steps) - decay:
        return
    raise ConfigError(
        f"{where}, but the learning rates of finished steps depend on config.steps. It may change with "
        'optim.schedule="constant", or optim.decay_steps before the decay begins. Or start a new run, with '
        f'source="{workdir}@{done}".'
    )
