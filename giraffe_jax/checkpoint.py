"""Checkpoints with orbax: the whole training state, or parameters alone, restored onto any mesh.

A training checkpoint holds parameters, optimizer state, step and key, and beside them, as JSON, the data position and
the resolved config. Writes are asynchronous and atomic: a checkpoint exists whole or not at all.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from giraffe_jax.config import ConfigError
from giraffe_jax.sharding import paths

FOLDER = "checkpoints"


def manager(
    workdir: str | Path, *, keep: int | None = None, best: str | None = None, keep_best: int = 1
) -> ocp.CheckpointManager:
    """Returns the manager of a workdir's checkpoints.

    Args:
      workdir: local directory or any path orbax takes (gs://...).
      keep: how many of the latest to keep; None keeps all.
      best: name of a metric, smaller is better: its best `keep_best` are kept besides the latest.
    """
    preservation: Any = ocp.checkpoint_managers.LatestN(n=keep)
    if best is not None:
        top = ocp.checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[best],
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        preservation = ocp.checkpoint_managers.AnyPreservationPolicy([preservation, top])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation,
        best_fn=None if best is None else (lambda metrics: metrics[best]),
        best_mode="min",
        save_interval_steps=1,
        enable_async_checkpointing=True,
    )
    directory = str(workdir).rstrip("/") + "/" + FOLDER
    if "://" not in directory:
        directory = str(Path(directory).absolute())
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, item_handlers=handlers, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any, about: dict, metrics: dict | None = None) -> None:
    """Starts saving `state` (arrays) and `about` (JSON) as the checkpoint of `step`; returns before it is written."""
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about))
    checkpoints.save(step, args=args, metrics=metrics, force=True)


def restore(checkpoints: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Returns the state of a checkpoint, or the part that `like` names, each array placed and cast as it says.

    Args:
      like: pytree of ShapeDtypeStructs with shardings; {"params": ...} alone leaves the rest unread.

    Raises:
      ConfigError: the saved tree differs; the message lists what is missing, extra or of another shape.
    """
    partial = isinstance(like, dict)
    saved = saved_tree(checkpoints, step)
    difference = compare_trees({k: saved[k] for k in like if k in saved} if partial else saved, like)
    if difference:
        raise ConfigError(
            f"checkpoint {step} in {checkpoints.directory} is of another model:\n" + "\n".join(difference)
        )
    how = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=partial))
    return checkpoints.restore(step, args=args)["state"]


def saved_tree(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """Returns the shapes and dtypes of what a checkpoint holds, without reading its arrays."""
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
    """Returns whether a path is a workdir with checkpoints of ours."""
    return (Path(path) / FOLDER).is_dir()


def read_about(checkpoints: ocp.CheckpointManager, step: int) -> dict:
    """Returns a checkpoint's JSON: its data position and the resolved config."""
    return checkpoints.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
