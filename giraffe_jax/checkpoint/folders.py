"""How a run's checkpoints lie in its workdir: folders, names, and Orbax's manager of them."""

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

FOLDER = "checkpoints"
TOKENIZER = "tokenizer"  # beside FOLDER: the tokenizer's files, so that a workdir can be moved and still be used
METHODS = "methods"  # beside FOLDER: source texts of own position methods, executed only if the user asks for it
DAMAGED = "damaged"  # beside FOLDER: checkpoints that were moved aside when a run resumed from an earlier one
METRIC = "eval_loss"  # the best checkpoint has the smallest
MEASURED_ON = "eval_data"  # saved with it: a hash of the data, since only losses on the same data are compared
STEP = r"0|[1-9][0-9]{0,17}"  # a step as its folder's name

Say = Callable[[str], Any]


class _Step(ocp.path.step.Metadata):
    @property
    def commit_timestamp(self) -> datetime.datetime:  # orbax's reads a file, and fails where that is damaged
        return datetime.datetime.fromtimestamp(self.path.stat().mtime, datetime.UTC)


class _Steps(ocp.path.step.NameFormat[ocp.path.step.Metadata]):
    """Which folders are checkpoints, for orbax too: committed ones with a step's name that are not empty."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[ocp.path.step.Metadata]:
        base = epath.Path(base_path)
        for path in base.iterdir() if base.is_dir() else ():
            if re.fullmatch(STEP, path.name) and ocp.path.step.is_path_finalized(path) and any(path.iterdir()):
                yield _Step(int(path.name), path)

    def find_step(self, base_path: epath.PathLike, step: int) -> ocp.path.step.Metadata:
        return _Step(step, epath.Path(base_path) / self.build_name(step))


class Checkpoints(ocp.CheckpointManager):
    """Orbax's CheckpointManager, which here opens even with damaged files, and remembers the steps it has verified."""

    def __init__(self, *args: Any, **keys: Any):
        self.verified: set[int] = set()
        super().__init__(*args, **keys)

    def metrics(self, step: int) -> Any:
        """Returns the metrics saved with a step, {name: number}, or None: none were, or they cannot be read."""
        try:
            saved: Any = super().metrics(step)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return saved if isinstance(saved, dict) and all(isinstance(x, int | float) for x in saved.values()) else None
