"""An experiment's manifest, `experiment.json`: what its rows were measured with, and which of them still count.

A cell's key is a digest of everything that affects its results: its part of the config, and the content of the user's
methods, documents, case files, tokenizer, weights, training data and the task's code (identity.py). If the key changes,
the cell is measured again, and reports leave out the rows of the same variant, task, length and seed under older keys.
Those stay in results.jsonl: if the change is undone, they count again.

- `contents`: those digests, by source, variant and task.
- `sources`: {variant: {path: digest}} of the user's methods, whose code is in methods/<digest>.py.
- `cells`: {key: [variant, task, length, seed]} of the rows that count.
- `kept`: cells whose older rows count because of --keep, and what has changed since.
- `unrecorded`: {"fingerprint": of the source, "keys": {key: older key}}, cells of a version that recorded no contents.
"""

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_jax import evals, identity, positions, records
from giraffe_jax.checkpoint import METHODS
from giraffe_jax.config import ConfigError, to_dict
from giraffe_jax.lab.cells import (
    All,
    Cell,
    Name,
    about_task,
    about_variant,
    cells,
    code_of,
    contents,
    of_training,
    training_of,
)
from giraffe_jax.provenance import beginning, versions
from giraffe_jax.report.scores import MANIFEST, RESULTS, by_cell
from giraffe_jax.training.workdir import check_same, read_json, stale

NAME = ("variant", "task", "length", "seed")  # of a cell, in its rows
AGAIN, KEPT, KNOWN = "are measured again", "keep their older rows", "have been measured with it before"


class Plan(NamedTuple):
    """What a run will do: its manifest, all cells, the cells left to measure, lines to print, and current contents."""

    manifest: dict[str, Any]
    cells: list[Cell]
    pending: list[Cell]
    notes: list[str]
    contents: All


def claim(
    config: Any, tasks: list[Any], trainings: Mapping[str, Any], workdir: Path, base: Callable[[], Any], keep: bool
) -> Plan:
    """Writes the workdir's manifest and the code of the user's methods, and returns the plan of a run.

    `base` loads the source, whose shape a new manifest records. Date and command are those of the first run. The other
    arguments and errors are those of `plan`.
    """
    planned = plan(config, tasks, trainings, workdir, keep=keep)
    manifest = planned.manifest if "model" in planned.manifest else planned.manifest | beginning(base())
    manifest["original_len"] = config.original_len or manifest.get("original_len") or base().config.original_len
    manifest["versions"] = versions()
    if first_process():
        for variant in config.variants:
            for text in code_of(variant).values():
                file = workdir / METHODS / f"{positions.code_digest(text)}.py"
                if not file.is_file():
                    records.write_atomically(file, text)
        records.write_atomically(workdir / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return planned._replace(manifest=manifest)


def plan(config: Any, tasks: list[Any], trainings: Mapping[str, Any], workdir: Path, *, keep: bool = False) -> Plan:
    """Returns what a run of an experiment will do in a workdir; writes nothing.

    Args:
      config: ExperimentConfig.
      tasks: built tasks.
      trainings: TrainConfig of each trained variant, by the variant's name.
      keep: keep the rows of cells whose contents have changed.

    Raises:
      ConfigError: the workdir holds another experiment (naming the first key of the config that differs).
    """
    old, experiment = identify(config, tasks, workdir)
    before = _before(old, finished(workdir / RESULTS))
    now = contents(config, tasks, trainings, before.contents)
    experiment["source"]["fingerprint"] = records.digest(now.source)

    @functools.cache
    def other_files() -> list[str]:
        return [] if identity.fingerprint_before(config.source) == before.fingerprint else [f"files of {config.source}"]

    def known_to_differ(cell: Cell) -> list[str]:
        """Returns what has changed for a cell of a version without contents: that version recorded a fingerprint of the
        source's files, and trainings keep the code of their methods."""
        training = trainings.get(cell.variant.name)
        if training is None:
            return other_files()
        where = training_of(config, cell.variant, cell.seed, workdir)
        return other_files() + stale(where, of_training(now, cell.variant, training), cell.variant.positions)

    todo = cells(config, tasks, now, before.fingerprint)
    counting, pending, kept, older = dict(before.counting), [], [], dict(before.older)
    changed: dict[str, list[tuple[Cell, str]]] = {}  # what has changed -> the affected cells and their fate
    for cell in todo:
        fate, rows_key, changes = before.fate(cell, now, known_to_differ)
        if fate == AGAIN and rows_key and keep:
            fate = KEPT
            kept.append(dict(zip(NAME, cell.name, strict=True)) | {"key": rows_key, "changed": changes})
        if fate == KNOWN and rows_key == cell.older:
            older[cell.key] = cell.older
        counting[cell.name] = cell.key if fate == AGAIN or rows_key is None else rows_key
        pending += [cell] if fate == AGAIN else []
        for thing in changes if rows_key else ():
            changed.setdefault(thing, []).append((cell, fate))

    manifest = {"config": to_dict(config), "identity": experiment, "source": experiment["source"]}
    manifest |= {key: old.get(key) for key in ("model", "date", "command", "original_len")} if old else {}
    groups = {"variants": {**before.contents.variants, **now.variants}, "tasks": {**before.contents.tasks, **now.tasks}}
    manifest["contents"] = {"source": now.source} | groups
    manifest["sources"] = _sources(config, old.get("sources", {}), {entry["variant"] for entry in kept})
    manifest |= {"cells": {key: list(name) for name, key in counting.items()}, "kept": kept}
    if before.fingerprint is not None:
        manifest["unrecorded"] = {"fingerprint": before.fingerprint, "keys": older}
    taken = sum(counting[cell.name] == older.get(cell.key) for cell in todo)
    return Plan(manifest, todo, pending, _notes(changed, taken, keep, todo), now)


class _Before(NamedTuple):
    """What earlier runs have recorded in a workdir."""

    contents: All
    done: dict[str, Name]  # finished cells by key, earliest first
    counting: Mapping[Name, str]  # keys of the rows that count
    kept_changes: Mapping[str, list[str]]  # key of rows kept by --keep -> what had changed since they were measured
    fingerprint: str | None  # of the source, if a version without contents measured here
    older: Mapping[str, str]  # key -> that version's key of the same cell

    def fate(
        self, cell: Cell, now: All, known_to_differ: Callable[[Cell], list[str]]
    ) -> tuple[str, str | None, list[str]]:
        """Returns a cell's fate (AGAIN or KNOWN), the key of its existing rows if any, and what has changed since."""
        changes = _changed(self.contents, now, cell)
        for key in (cell.key, self.older.get(cell.key)):
            if key in self.done:
                return KNOWN, key, changes
        if self.fingerprint is not None and cell.name not in self.counting and cell.older in self.done:
            changes = known_to_differ(cell)
            if not changes:
                return KNOWN, cell.older, changes
        rows_key = self.counting.get(cell.name)
        if rows_key not in self.done:
            rows_key = next((key for key, name in reversed(self.done.items()) if name == cell.name), None)
        return AGAIN, rows_key, list(dict.fromkeys([*changes, *self.kept_changes.get(rows_key or "", ())]))


def _before(manifest: Mapping[str, Any], done: dict[str, Name]) -> _Before:
    recorded = All({}, {}, {})
    if "contents" in manifest:
        recorded = All(*(manifest["contents"][group] for group in All._fields))
    unrecorded = manifest.get("unrecorded", {"fingerprint": None, "keys": {}})
    if manifest and "contents" not in manifest:
        unrecorded = unrecorded | {"fingerprint": manifest["identity"]["source"].get("fingerprint")}
    counting = {tuple(name): key for key, name in manifest.get("cells", {}).items()}
    kept_changes = {entry["key"]: entry["changed"] for entry in manifest.get("kept", ())}
    return _Before(recorded, done, counting, kept_changes, unrecorded["fingerprint"], unrecorded["keys"])


def _sources(config: Any, recorded: Mapping[str, Any], kept_variants: set[str]) -> dict[str, dict[str, str]]:
    """Returns {variant: {"my_method.py": digest}} of the user's methods; `kept_variants` keep the digests of their
    older rows."""
    current = {
        variant.name: {path: positions.code_digest(text) for path, text in code_of(variant).items()}
        for variant in config.variants
        if variant.name not in kept_variants
    }
    return {name: files for name, files in {**recorded, **current}.items() if files}


def _changed(before: All, now: All, cell: Cell) -> list[str]:
    """Returns which of a cell's contents have changed; contents that were not recorded before count as unchanged."""
    pairs = [(old, new) for old, new in zip(before.of(cell), now.of(cell), strict=True) if None not in (old, new)]
    return [line for old, new in pairs for line in identity.changes(old or {}, new or {})]


def _notes(changed: Mapping[str, list[tuple[Cell, str]]], taken: int, keep: bool, todo: Sequence[Cell]) -> list[str]:
    """Returns lines about what has changed, what happens to the affected cells, and what is unknown."""
    notes = []
    for thing, affected in changed.items():
        for fate in (AGAIN, KEPT, KNOWN):
            some = [cell for cell, cell_fate in affected if cell_fate == fate]
            if some:
                notes.append(f"changed: {thing}; {len(some)} of {len(todo)} cells ({_named(some, todo)}) {fate}")
    if not keep and any(fate == AGAIN for affected in changed.values() for _, fate in affected):
        notes.append("with --keep, changed cells keep their older rows and are not measured again")
    if taken:
        notes.append(
            f"{taken} of {len(todo)} cells are rows of an older version, which did not record the code of own methods "
            "nor the bytes of documents, case files and training data: they count as measured with those of now"
        )
    return notes


def _named(some: Sequence[Cell], todo: Sequence[Cell]) -> str:
    """Returns the variants and tasks of `some` cells in words, naming only what narrows them down from `todo`."""
    parts = []
    for field in (0, 1):  # of a name
        names, every = (list(dict.fromkeys(str(cell.name[field]) for cell in cells)) for cells in (some, todo))
        if len(names) < len(every):
            parts.append(", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
    return "; ".join(parts) or "all variants and tasks"


def finished(path: Path) -> dict[str, Name]:
    """Returns the finished cells by key: those whose "done" row follows as many rows as it counts."""
    if not path.is_file():
        return {}
    done = by_cell(records.read_rows(path, warnings.warn))[1]
    names = {}
    for key, (row, _) in done.items():
        variant, task, length, seed = (row.get(of) for of in NAME)
        if isinstance(variant, str) and isinstance(task, str) and isinstance(length, int) and isinstance(seed, int):
            names[key] = variant, task, length, seed
    return names


def failed(path: Path, after: int) -> set[str]:
    """Returns the keys of cells that failed, ignoring the first `after` rows of the file."""
    rows = itertools.islice(records.read_rows(path, lambda line: None), after, None)
    return {row["key"] for row in rows if row.get("kind") == "failure" and isinstance(row.get("key"), str)}


def identify(config: Any, tasks: list[Any], workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (the workdir's manifest, {} if there is none; the experiment's identity to record); writes nothing.

    Raises:
      ConfigError: the workdir holds another experiment, or something else.
    """
    old = _read(workdir / MANIFEST) if (workdir / MANIFEST).is_file() else {}
    experiment = {
        "name": config.name,
        "source": {"name": config.source},
        "model": to_dict(config.overrides),
        "variants": {variant.name: about_variant(variant) for variant in config.variants},
        "tasks": {evals.label(task): about_task(task) for task in tasks},
    }
    if old:
        now, then = json.loads(json.dumps(experiment)), dict(old["identity"])
        for group in ("variants", "tasks"):  # may be added and removed, but those in both must be equal
            here, there = now[group], then[group]
            now[group], then[group] = ({k: v for k, v in x.items() if k in here and k in there} for x in (here, there))
            experiment[group] = there | experiment[group]  # what was measured stays part of the workdir
        then["source"] = {"name": then.get("source", {}).get("name")}  # its files may change: cells depend on them
        check_same(workdir, "experiment", then, now)
    elif (workdir / RESULTS).is_file():
        raise ConfigError(f"workdir: {workdir} has {RESULTS} but no {MANIFEST}: not an experiment's; choose another.")
    return old, experiment


def _read(path: Path) -> dict[str, Any]:
    manifest = read_json(path, "an experiment's manifest", ("identity",))
    manifest["identity"].setdefault("source", {})
    groups = [("identity", group) for group in ("source", "variants", "tasks")]
    groups += [("contents", group) for group in All._fields] if "contents" in manifest else []
    kinds: dict[str, type] = {"cells": dict, "sources": dict, "kept": list, "unrecorded": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name, kind()), kind)]
    if wrong:
        reason = f"is not an experiment's manifest ({wrong[0]} is {type(manifest[wrong[0]]).__name__})"
        raise ConfigError(f"--workdir: {path} {reason}. Choose another one.")
    for place, group in groups:
        if not isinstance(manifest[place], dict) or not isinstance(manifest[place].get(group), dict):
            reason = f"is not an experiment's manifest ({place}.{group} is no object)"
            raise ConfigError(f"--workdir: {path} {reason}. Choose another one.")
    return manifest


def first_process() -> bool:
    """Returns whether this is process 0, the one that writes and prints."""
    import jax

    return jax.process_index() == 0
