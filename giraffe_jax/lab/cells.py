"""The cells of an experiment and their keys. A cell's key is a digest of everything that affects its results.

That is its part of the config, and the content of what the config names (identity.py): the user's methods and what they
import, documents, case files, tokenizer, weights, training data, and the version of the task's code.
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
    """One task at one length for one variant and seed: the unit that is measured and recorded as done."""

    variant: Any
    task: Any
    length: int
    seed: int
    key: str
    older: str  # its key in older versions, which recorded no contents but a fingerprint of the source

    @property
    def name(self) -> Name:
        """(variant, label of the task, length, seed)."""
        return self.variant.name, evals.label(self.task), self.length, self.seed


class All(NamedTuple):
    """The contents that cells depend on: those of the source, and those of variants and tasks by name."""

    source: Contents
    variants: Mapping[str, Contents]
    tasks: Mapping[str, Contents]

    def of(self, cell: Cell) -> list[Contents | None]:
        """Returns the contents of a cell's source, variant and task; None for each that is unknown."""
        variant, task, *_ = cell.name
        return [self.source or None, self.variants.get(variant), self.tasks.get(task)]


def contents(config: Any, tasks: list[Any], trainings: Mapping[str, Any], before: All) -> All:
    """Returns what the cells of an experiment depend on.

    Args:
      config: ExperimentConfig.
      tasks: built tasks.
      trainings: TrainConfig of each trained variant, by the variant's name.
      before: contents recorded by an earlier run, used for training data that no longer exists.
    """
    variants = {}
    for variant in config.variants:
        digests = identity.of_code(scaling_of(variant))
        if variant.name in trainings:
            digests |= identity.of_training(trainings[variant.name], before.variants.get(variant.name, {}))
        variants[variant.name] = digests
    source = identity.of_source(config.source, base=config.base)
    return All(source, variants, {evals.label(t): cases.contents(t) for t in tasks})


def of_training(contents: All, variant: Any, config: Any) -> Contents:
    """Returns the contents that a variant's training depends on: the experiment's source and what `config` reads.

    Args:
      contents: the experiment's contents.
      variant: the trained variant.
      config: its TrainConfig.
    """
    digests = contents.source | identity.of_training(config, contents.variants[variant.name])
    if config.data.seed != variant.train["data"].get("seed", 0):  # a run that lacks this read the rows of seed 0
        digests |= {"seed of training rows": str(config.data.seed)}
    return digests


def scaling_of(variant: Any) -> list[Any]:
    """Returns all position methods that a variant is trained or evaluated with."""
    trained = variant.train is not None or variant.eval_positions is None
    return [*(variant.positions if trained else ()), *(variant.eval_positions or ())]


def code_of(variant: Any) -> dict[str, str]:
    """Returns {"folder/my_method.py": text} of the user's methods in a variant and of what they import."""
    return positions.sources(scaling_of(variant))


def cells(config: Any, tasks: list[Any], contents: All, fingerprint: str | None = None) -> list[Cell]:
    """Returns all cells in the order of measurement; cells that no seed changes appear for the first seed only.

    Args:
      config: ExperimentConfig.
      tasks: built tasks.
      contents: the experiment's contents.
      fingerprint: of the source, as recorded by an older version; for `Cell.older`.
    """
    out = []
    for seed in config.seeds:
        for variant in config.variants:
            for task in tasks:
                if seed != config.seeds[0] and variant.train is None and not hasattr(task, "seed"):
                    continue
                seeded = dataclasses.replace(task, seed=task.seed + seed) if hasattr(task, "seed") else task
                for length in task.lengths:
                    label = evals.label(task)
                    description = [variant.name, about_variant(variant), label, about_task(seeded), length, seed]
                    if variant.train is not None and seed:  # rows without it are of other batches: those of seed 0
                        description.append("data.seed")
                    content = [contents.source, contents.variants[variant.name], contents.tasks[label]]
                    key = records.digest([*description, config.overrides, content])
                    older = records.digest([*description, fingerprint, config.overrides])
                    out.append(Cell(variant, seeded, length, seed, key, older))
    return out


def about_variant(variant: Any) -> dict[str, Any]:
    """Returns a variant's keys in the config, without its name."""
    return {key: value for key, value in to_dict(variant).items() if key != "name"}


def about_task(task: Any) -> dict[str, Any]:
    """Returns the config values that a task's examples depend on. That includes other lengths, if they determine which
    documents are used or what is scored."""
    values = {key: value for key, value in to_dict(task).items() if key != "lengths"}
    values |= {"longest": max(task.lengths)} if hasattr(task, "documents") or values.get("questions") else {}
    values |= {"lengths": sorted(task.lengths)} if values.get("files") else {}  # each case at the shortest it fits
    return values | ({"shortest": min(task.lengths)} if values.get("protocol") == "aligned" else {})


def folder(config: Any, variant: Any, seed: int) -> str:
    """Returns the folder name of a variant's training: the name of the first variant with the same training, since
    variants that differ only in eval_positions share it."""
    alike = (v for v in config.variants if (v.positions, v.train) == (variant.positions, variant.train))
    first = variant if variant.train is None else next(alike)
    return records.slug(first.name, seed if seed or len(config.seeds) > 1 else None)


def training_of(config: Any, variant: Any, seed: int, workdir: Path) -> Path:
    """Returns the workdir of a variant's training."""
    return workdir / "train" / folder(config, variant, seed)
