"""Prepares the variants of an experiment for evaluation: trains or resumes them, or loads the source."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax import records
from giraffe_jax.lab.cells import All, of_training, training_of
from giraffe_jax.lab.manifest import first_process
from giraffe_jax.lab.spec import (
    ExperimentConfig,
    Variant,
    read_with,
    train_config,
)
from giraffe_jax.training.workdir import CONTENTS, stale

LOCKS = ".locks"


def _prepare(
    config: ExperimentConfig,
    contents: All,
    variant: Variant,
    seed: int,
    workdir: Path,
    base: Any,
    say: Callable[[str], None],
) -> tuple[Any, Callable[[int], Any]]:
    """Returns (lm, encoding_for(length)) of a variant, trained first if its config says so."""
    from giraffe_jax.training.loop import train

    if variant.train is None:
        loaded = base()
    else:
        base.cache_clear()  # training loads its own copy: frees the memory of this one
        where = training_of(config, variant, seed, workdir)
        trained = train_config(config, variant, seed)
        _begin(where, of_training(contents, variant, trained), variant, say)
        say(f"  training {variant.name}: {trained.steps} steps, in {where}")
        loaded = train(trained, where)
    model = dataclasses.replace(loaded.config, positions=())
    methods = variant.positions if variant.train is None else loaded.config.positions  # training may have changed them
    scaling = read_with(dataclasses.replace(variant, positions=methods))

    def encoding_for(length: int) -> Any:
        return model.bind(length, scaling=scaling)

    return dataclasses.replace(loaded, config=model), encoding_for


def _begin(where: Path, now: Mapping[str, str], variant: Variant, say: Callable[[str], None]) -> None:
    """Records the contents that a training depends on; a run begun with other contents is moved aside first."""
    import jax

    changes = stale(where, now, variant.positions)
    if first_process():
        if changes:
            tries = (where.with_name(f"{where.name}.before-{i}") for i in itertools.count(1))
            aside = next(path for path in tries if not path.exists())
            where.rename(aside)
            say(f"  changed: {', '.join(changes)}; {variant.name} is trained anew, its run until now is in {aside}")
        records.write_atomically(where / CONTENTS, json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("training's folder")
