"""Checkpoints with orbax: the whole training state, or parameters alone, restored onto any mesh.

A training checkpoint holds parameters, optimizer state, step and key, and beside them, as JSON, the data position and
the resolved config. Writes are asynchronous and atomic: a checkpoint exists whole or not at all. It includes the size
and SHA-256 of each of its files (checksums.json), and every restore verifies them. SHA-256 finds any change, is what
`sha256sum` prints, and with hardware support costs less than reading the file. Checkpoints without checksums.json are
used unverified: old ones, and those on object stores, which keep checksums themselves.

In a job of several processes all of them call these functions together, and all get the same answer.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from giraffe_jax.checkpoint.checksums import _Summed, _verify
from giraffe_jax.checkpoint.folders import FOLDER, Checkpoints, _Steps
from giraffe_jax.config import ConfigError, FrozenDict
from giraffe_jax.sharding import paths


def manager(
    workdir: str | Path,
    *,
    keep: int | None = None,
    best: str | None = None,
    keep_best: int = 1,
    only: Mapping[str, float] = FrozenDict({}),
) -> Checkpoints:
    """Returns the manager of a workdir's checkpoints.

    Args:
      workdir: local directory or any path orbax takes (gs://...).
      keep: how many of the latest to keep; None keeps all.
      best: name of a metric, smaller is better: the `keep_best` checkpoints that are best in it are kept too.
      only: metrics whose values a checkpoint must have to be among the best, as {MEASURED_ON: ...}; {} allows any.
    """

    def score(metrics: Any) -> float:
        return metrics.get(best, math.inf) if all(metrics.get(key) == only[key] for key in only) else math.inf

    preservation: Any = ocp.checkpoint_managers.LatestN(n=keep)
    if best is not None:
        top = ocp.checkpoint_managers.BestN(
            get_metric_fn=score, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
        )
        preservation = ocp.checkpoint_managers.AnyPreservationPolicy([preservation, top])
    directory = str(workdir).rstrip("/") + "/" + FOLDER
    remote = "://" in directory
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation,
        best_fn=None if best is None else score,
        best_mode="min",
        save_interval_steps=1,
        enable_async_checkpointing=True,
        step_name_format=_Steps(),
        temporary_path_class=None if remote else _Summed,
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    directory = directory if remote else str(Path(directory).absolute())
    return Checkpoints(directory, item_handlers=handlers, options=options)


def check_path(workdir: str | Path) -> None:
    """Raises ConfigError for a local path with "[": orbax takes it for a pattern where it joins the arrays of
    processes, finds none, and commits checkpoints that cannot be read."""
    if "://" not in str(workdir) and "[" in str(Path(workdir).absolute()):
        raise ConfigError(f"--workdir: {workdir} has '[' in its path: checkpoints saved there cannot be read back.")


def save(checkpoints: Checkpoints, step: int, state: Any, metadata: dict, metrics: dict | None = None) -> None:
    """Starts saving arrays `state` and JSON `metadata` as the checkpoint of `step`; returns before they are written.

    Raises:
      ConfigError: a path under which it could not be read back.
    """
    check_path(str(checkpoints.directory))
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(metadata))
    checkpoints.verified.discard(step)
    checkpoints.save(step, args=args, metrics=metrics, force=True)


def restore(checkpoints: Checkpoints, step: int, like: Any) -> Any:
    """Returns the state of a checkpoint, or the part that `like` names, each array sharded and cast as `like` says.

    The checkpoint is verified first, unless this manager has already done so.

    Args:
      like: pytree of ShapeDtypeStructs with shardings; {"params": ...} alone leaves the rest unread.

    Raises:
      ConfigError: the checkpoint is damaged or not one of this project, or the saved tree differs; the message names
        the file, or lists what is missing, extra or of another shape.
    """
    partial = isinstance(like, dict)
    saved = saved_tree(checkpoints, step)
    with _reading(checkpoints, step):
        difference = compare_trees({k: saved[k] for k in like if k in saved} if partial else saved, like)
    if difference:
        raise ConfigError(
            f"checkpoint {step} in {checkpoints.directory} is of another model:\n" + "\n".join(difference)
        )
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=partial))
    with _reading(checkpoints, step):
        return checkpoints.restore(step, args=args)["state"]


def saved_tree(checkpoints: Checkpoints, step: int) -> Any:
    """Verifies a checkpoint, and returns the shapes and dtypes of its arrays.

    Raises:
      ConfigError: it is damaged, or not one of this project.
    """
    _verify(checkpoints, step)
    with _reading(checkpoints, step):
        return checkpoints.item_metadata(step)["state"].tree


def compare_trees(saved: Any, wanted: Any) -> list[str]:
    """Returns one line for each difference between two trees of things with shapes: missing, extra, wrong shape."""
    have, want = paths(saved), paths(wanted)
    lines = [f"  missing: {p} {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"  extra:   {p} {tuple(have[p].shape)}" for p in have if p not in want]
    lines += [
        f"  shape:   {p} is {tuple(have[p].shape)}, wanted {tuple(want[p].shape)}"
        for p in want
        if p in have and tuple(have[p].shape) != tuple(want[p].shape)
    ]
    return lines


def is_workdir(path: str | Path) -> bool:
    """Returns whether a path is a workdir with checkpoints."""
    return (Path(path) / FOLDER).is_dir()


def read_about(checkpoints: Checkpoints, step: int) -> dict:
    """Returns a checkpoint's JSON: its data position and the resolved config.

    Raises:
      ConfigError: this JSON is damaged or absent. The arrays are not verified.
    """
    _verify(checkpoints, step, "about/")
    with _reading(checkpoints, step):
        metadata = checkpoints.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        return dict(metadata.items())


@contextlib.contextmanager
def _reading(checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Turns an error of orbax, which names neither step nor directory, into a ConfigError that does."""
    try:
        yield
    except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).split(chr(10))[0][:200]}"
        raise ConfigError(f"checkpoint {step} in {checkpoints.directory} cannot be read ({cause}).") from error
