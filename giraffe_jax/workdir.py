"""The workdir of a run: whose it is, and what may change between two starts of the same run.

What decides numbers must be what it was. How they are computed, saved and looked at may change, and so may the number
of steps as long as no step that is done would have had another learning rate.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from giraffe_jax import checkpoint
from giraffe_jax.config import ConfigError
from giraffe_jax.loading import TOKENIZER
from giraffe_jax.records import write_atomically
from giraffe_jax.tokenizer import Tokenizer

CONFIG = "config.json"
MAY_CHANGE = {
    "mesh", "loss_chunk", "save_every", "keep", "eval_data", "eval_every", "eval_batches", "tokenizer",
    "model.attention", "model.block_size", "model.remat", "model.mlp_chunk", "data.cache_dir", "data.prefetch",
}  # fmt: skip


def claim(workdir: Path, resolved: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, tuple]:
    """Writes config.json and the tokenizer into a new workdir, or checks that the one there is of this run.

    Returns:
      {"mesh.fsdp": (old, new), ...} for what has changed and may; config.json then holds the new.

    Raises:
      ConfigError: the workdir holds another run; names the first key that differs, and what may be done.
    """
    file, new = workdir / CONFIG, json.loads(json.dumps(resolved))
    changed: dict[str, tuple] = {}
    if file.is_file():
        try:
            there = json.loads(file.read_text())
        except ValueError as e:
            raise ConfigError(f"--workdir: {file} is not JSON: {e}.") from e
        changed = differences(there, new)
        for key, (old, now) in sorted(changed.items()):
            if key == "steps" and isinstance(old, int):
                _check_steps(workdir, old, new)
            elif not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE):
                raise ConfigError(
                    f"--workdir: {workdir} holds another run: config.{key} was {old!r}, now {now!r}. Choose a new one."
                )
    elif (workdir / checkpoint.FOLDER).exists():
        raise ConfigError(f"--workdir: {workdir} has checkpoints but no {CONFIG}: not a run that can be continued.")
    if jax.process_index() == 0 and (changed or not file.is_file()):
        for name, content in tokenizer.files().items():
            if not (workdir / TOKENIZER / name).is_file():
                write_atomically(workdir / TOKENIZER / name, content)
        write_atomically(file, json.dumps(resolved, indent=2) + "\n")
    return changed


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple]:
    """Returns {"optim.lr": (old, new), ...} of two nested configs, lists as wholes."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    return {} if old == new else {where: (old, new)}


def _check_steps(workdir: Path, old: int, new: Mapping[str, Any]) -> None:
    """Raises ConfigError where the learning rate of a step that is done would have been another one."""
    steps, optim = new["steps"], new.get("optim", {})
    if not (workdir / checkpoint.FOLDER).is_dir():
        return
    with checkpoint.manager(workdir) as checkpoints:
        done = (checkpoint.steps(checkpoints) or [0])[-1]
    where = f"--workdir: {workdir} holds a run of {old} steps, {done} of them done; config.steps is now {steps}"
    if steps < done:
        raise ConfigError(f"{where}: fewer than are done. Its checkpoints are sources: {workdir}@STEP.")
    if done == 0 or optim.get("schedule", "constant") == "constant":
        return
    decay = optim.get("decay_steps")
    if decay is not None and max(done, optim["warmup_steps"]) <= min(old, steps) - decay:
        return
    raise ConfigError(
        f"{where}, but the learning rate of steps that are done follows from config.steps. What would allow it: "
        'optim.schedule="constant", or optim.decay_steps with the descent not begun. Or start a new run, with '
        f'source="{workdir}@{done}".'
    )
