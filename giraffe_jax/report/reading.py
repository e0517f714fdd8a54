"""Reads the results of one work directory, or of several side by side, with variants that are equal in all merged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from giraffe_jax import records
from giraffe_jax.config import ConfigError
from giraffe_jax.report import drawn, training
from giraffe_jax.report.scores import MANIFEST, RESULTS, Results, Row, collect
from giraffe_jax.tokenizer import read_json

BOOKKEEPING = ("variant", "key", "trained", "seed")  # fields about how a row was made, not about its result


def read(directories: Sequence[str | Path]) -> Results:
    """Returns the results of one or more work directories: each has results.jsonl and, from `giraffe run`, a manifest.

    A variant of several directories appears once if they agree in everything that both measured of it; else the
    directory's name is appended to the variant's.

    Raises:
      FileNotFoundError: a directory has no results.jsonl.
      ConfigError: a directory has no results yet, or no valid manifest.
    """
    results = [_read_one(Path(directory)) for directory in directories]
    if len(results) == 1:
        return results[0]
    parts = dict(zip(_labels(directories), results, strict=True))
    rename = _renamed(parts)
    rows: list[Row] = []
    failures: list[Row] = []
    variants: dict[str, Mapping[str, Any]] = {}
    curves: dict[str, tuple[training.Curve, ...]] = {}
    sources: dict[str, Mapping[str, str]] = {}
    pictures: dict[str, drawn.Drawn] = {}
    kept: set[tuple[str, str, int]] = set()
    for label, part in parts.items():
        names = rename[label]
        known = {(row["variant"], row["task"], row["length"]) for row in rows}
        part_rows = ({**row, "variant": names[row["variant"]]} for row in part.rows)
        rows += [row for row in part_rows if (row["variant"], row["task"], row["length"]) not in known]
        failures += [{**row, "variant": names.get(v := str(row.get("variant")), v)} for row in part.failures]
        for entry in part.manifest.get("config", {}).get("variants", ()):
            if entry["name"] in names:
                variants.setdefault(names[entry["name"]], {**entry, "name": names[entry["name"]]})
        kept |= {(names[v], task, length) for v, task, length in part.kept_cells if v in names}
        old_names = {names[v]: v for v in names}
        curves = {new: part.training[v] for new, v in old_names.items() if v in part.training} | curves
        sources = {new: part.sources[v] for new, v in old_names.items() if v in part.sources} | sources
        pictures = {new: part.drawn[v] for new, v in old_names.items() if v in part.drawn} | pictures
    first, *others = parts.values()
    manifest = dict(first.manifest)
    order = (names[v] for v in _names(parts) for names in rename.values() if v in names)  # copies of a variant together
    entries = [variants[name] for name in dict.fromkeys(order) if name in variants]
    manifest["config"] = {**manifest.get("config", {}), "variants": entries}
    for key in ("original_len", "model", "date", "command"):  # facts about the whole report must hold for all parts
        if any(part.manifest.get(key) != first.manifest.get(key) for part in others):
            manifest.pop(key, None)
    seconds = float(sum(part.seconds for part in parts.values()))
    return Results(
        tuple(rows), tuple(failures), seconds, manifest, curves, rename, frozenset(kept), sources, pictures
    )  # fmt: skip


def _renamed(parts: Mapping[str, Results]) -> dict[str, dict[str, str]]:
    """Returns, for each directory, its variants' names -> their names in the joint results."""
    rename: dict[str, dict[str, str]] = {label: {} for label in parts}
    for name in _names(parts):
        groups: list[list[str]] = []  # of directories that agree
        for label in (label for label, part in parts.items() if name in part.variants):
            alike = (group for group in groups if same_variant(parts[group[0]], parts[label], name))
            group = next(alike, None)
            groups.append([label]) if group is None else group.append(label)
        for group in groups:
            for label in group:
                rename[label][name] = name if len(groups) == 1 else f"{name} ({', '.join(group)})"
    return rename


def _names(parts: Mapping[str, Results]) -> list[str]:
    return list(dict.fromkeys(name for part in parts.values() for name in part.variants))


def same_variant(one: Results, other: Results, name: str) -> bool:
    """Returns whether two runs agree on a variant: its methods, training and code, and all rows that both measured."""
    if _about(one, name) != _about(other, name) or changed(one.sources.get(name), other.sources.get(name)):
        return False
    shared = _cells(one, name) & _cells(other, name)
    return bool(shared) and all(same_rows(one.of(t, name, n), other.of(t, name, n)) for t, n in shared)


def same_rows(one: Iterable[Row], other: Iterable[Row]) -> bool:
    """Returns whether rows are equal in any order: examples, metrics and outputs, to the last bit."""

    def content(rows: Iterable[Row]) -> list[str]:
        return sorted(records.digest({k: v for k, v in row.items() if k not in BOOKKEEPING}) for row in rows)

    return content(one) == content(other)


def changed(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> list[str]:
    """Returns the files of the user's methods that differ between two runs; none if one of them did not record them."""
    if one is None or other is None:
        return []
    return sorted(file for file in {*one, *other} if one.get(file) != other.get(file))


def _about(results: Results, name: str) -> Any:
    entries = results.manifest.get("config", {}).get("variants", ())
    return next(({k: v for k, v in e.items() if v is not None} for e in entries if e["name"] == name), None)


def _cells(results: Results, name: str) -> set[tuple[str, int]]:
    return {(row["task"], row["length"]) for row in results.rows if row["variant"] == name}


def _labels(directories: Sequence[str | Path]) -> list[str]:
    """Returns a label per directory: its name, or its path as given if two have the same name."""
    names = [Path(directory).resolve().name for directory in directories]
    return [n if names.count(n) == 1 else str(d) for n, d in zip(names, directories, strict=True)]


def _read_one(directory: Path) -> Results:
    path = directory / RESULTS if directory.is_dir() else directory
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no {RESULTS} there; `giraffe run` and `giraffe evaluate` write one")
    manifest_path = path.parent / MANIFEST
    manifest = _read_manifest(manifest_path) if manifest_path.is_file() else {}
    results = collect(records.read_rows(path, warnings.warn), manifest)
    if not results.rows and not results.failures:
        raise ConfigError(f"{path}: no results in it yet")
    entries = manifest.get("kept")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    keys = {entry["key"] for entry in entries if isinstance(entry.get("key"), str)}
    kept = {(row["variant"], row["task"], row["length"]) for row in results.rows if row.get("key") in keys}
    sources = manifest.get("sources")
    sources = {v: files for v, files in sources.items() if isinstance(files, dict)} if isinstance(sources, dict) else {}
    return replace(
        results, training=training.read(path.parent, manifest), kept_cells=frozenset(kept), sources=sources,
        drawn=drawn.read(path.parent),
    )  # fmt: skip


def _read_manifest(path: Path) -> dict[str, Any]:
    """Returns a workdir's manifest; ConfigError if it is not valid."""
    manifest = read_json(path)
    config = manifest.get("config", {})
    variants = config.get("variants", []) if isinstance(config, dict) else None
    named = isinstance(variants, list) and all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in variants)
    if not named:
        raise ConfigError(f"{path}: not an experiment's manifest: config.variants is no list of objects with names.")
    return manifest
