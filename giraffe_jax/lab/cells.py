"""The cells of an experiment, and the key of each: a digest of all that decides its numbers.

That is what the config says and the content of what it names (identity.py): own methods and what they import,
documents, case files, tokenizer, weights, training data, and the version of the task's code.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_jax import evals, identity, positions, records
from giraffe_jax.config import to_dict
from giraffe_jax.evals import cases
from giraffe_jax.identity import Contents

Name = tuple[str, str, int, int]  # of a cell: variant, task, length, seed


class Cell(NamedTuple):
    """One task at one length for one variant: what is measured, and recorded as done, in one piece."""

    variant: Any
    task: Any
    length: int
    seed: int
    key: str
    older: str  # the key that it had in versions which knew no contents, for the source's fingerprint of then

    @property
    def name(self) -> Name:
        return self.variant.name, evals.label(self.task), self.length, self.seed


class All(NamedTuple):
    """The contents that cells depend on: of the source, and by name those of variants and tasks."""

    source: Contents
    variants: Mapping[str, Contents]
    tasks: Mapping[str, Contents]

    def of(self, cell: Cell) -> list[Contents | None]:
        """Returns those of a cell; None for a variant or task that is not known here."""
        variant, task, *_ = cell.name
        return [self.source or None, self.variants.get(variant), self.tasks.get(task)]


def contents(config: Any, tasks: list[Any], trainings: Mapping[str, Any], before: All) -> All:
    """Returns what the cells of an experiment depend on.

    Args:
      config: ExperimentConfig.
      tasks: built ones.
      trainings: TrainConfig of each variant that is trained, by its name.
      before: of an earlier run, for training data that is no longer there.
    """
    variants = {}
    for variant in config.variants:
        found = identity.of_code(scaling_of(variant))
        if variant.name in trainings:
            found |= identity.of_training(trainings[variant.name], before.variants.get(variant.name, {}))
        variants[variant.name] = found
    source = identity.of_source(config.source, base=config.base)
    return All(source, variants, {evals.label(t): cases.contents(t) for t in tasks})


def of_training(found: All, variant: Any, config: Any) -> Contents:
    """Returns what a variant's training depends on: the experiment's source, and what its TrainConfig reads."""
    return found.source | identity.of_training(config, found.variants[variant.name])


def scaling_of(variant: Any) -> list[Any]:
    """Returns all position methods that a variant is trained or read with."""
    trained = variant.train is not None or variant.eval_positions is None
    return [*(variant.positions if trained else ()), *(variant.eval_positions or ())]


def code_of(variant: Any) -> dict[str, str]:
    """Returns {"folder/my_method.py": text} of a variant's own methods and what they import."""
    return positions.sources(scaling_of(variant))


def cells(config: Any, tasks: list[Any], found: All, fingerprint: str | None = None) -> list[Cell]:
    """Returns all cells in the order they are measured; what no seed can change is there for the first one only."""
    out = []
    for seed in config.seeds:
        for variant in config.variants:
            for task in tasks:
                if seed != config.seeds[0] and variant.train is None and not hasattr(task, "seed"):
                    continue
                seeded = dataclasses.replace(task, seed=task.seed + seed) if hasattr(task, "seed") else task
                for length in task.lengths:
                    label = evals.label(task)
                    about = [variant.name, about_variant(variant), label, about_task(seeded), length, seed]
                    content = [found.source, found.variants[variant.name], found.tasks[label]]
                    key = records.digest([*about, config.overrides, content])
                    older = records.digest([*about, fingerprint, config.overrides])
                    out.append(Cell(variant, seeded, length, seed, key, older))
    return out


def about_variant(variant: Any) -> dict[str, Any]:
    """Returns what the config says of a variant."""
    return {key: value for key, value in to_dict(variant).items() if key != "name"}


def about_task(task: Any) -> dict[str, Any]:
    """Returns what a task's examples depend on in the config: other lengths too, where they choose documents or what is
    scored of them."""
    about = {key: value for key, value in to_dict(task).items() if key != "lengths"}
    about |= {"longest": max(task.lengths)} if hasattr(task, "documents") or about.get("questions") else {}
    about |= {"lengths": sorted(task.lengths)} if about.get("files") else {}  # each case at the shortest that holds it
    return about | ({"shortest": min(task.lengths)} if about.get("protocol") == "aligned" else {})


def folder(config: Any, variant: Any, seed: int) -> str:
    """Returns the name of a variant's training: that of the first variant which is trained alike, and read at other
    scales."""
    alike = (v for v in config.variants if (v.positions, v.train) == (variant.positions, variant.train))
    first = variant if variant.train is None else next(alike)
    return records.slug(first.name, seed if len(config.seeds) > 1 else None)


def training_of(config: Any, variant: Any, seed: int, workdir: Path) -> Path:
    """Returns the workdir of a variant's training."""
    return workdir / "train" / folder(config, variant, seed)
