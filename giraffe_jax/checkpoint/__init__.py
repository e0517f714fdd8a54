"""Checkpoints by Orbax: saved whole with checksums, found by step, by loss or as the last good one."""

from giraffe_jax.checkpoint.checksums import SUMS, damage
from giraffe_jax.checkpoint.folders import (
    DAMAGED,
    FOLDER,
    MEASURED_ON,
    METHODS,
    METRIC,
    STEP,
    TOKENIZER,
    Checkpoints,
    Say,
)
from giraffe_jax.checkpoint.select import best_loss, find_step, latest_good, set_aside, split_source, steps
from giraffe_jax.checkpoint.store import (
    check_path,
    compare_trees,
    is_workdir,
    manager,
    read_about,
    restore,
    save,
    saved_tree,
)

__all__ = [
    "Checkpoints",
    "DAMAGED",
    "FOLDER",
    "MEASURED_ON",
    "METHODS",
    "METRIC",
    "STEP",
    "SUMS",
    "Say",
    "TOKENIZER",
    "best_loss",
    "check_path",
    "compare_trees",
    "damage",
    "find_step",
    "is_workdir",
    "latest_good",
    "manager",
    "read_about",
    "restore",
    "save",
    "saved_tree",
    "set_aside",
    "split_source",
    "steps",
]
