"""From rows to scores: which rows count, and the scores of each variant, task and length, in order.

Tables, plots and the page read nothing but a `Results`. Every score is an `Estimate` of `evals.stats`, so every number
comes with its n and its interval.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from giraffe_jax.evals import stats
from giraffe_jax.evals.stats import Estimate
from giraffe_jax.report import metrics, training
from giraffe_jax.report.drawn import Drawn
from giraffe_jax.report.metrics import PERPLEXITY, Metric

RESULTS = "results.jsonl"
MANIFEST = "experiment.json"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """One number of the report: a metric of a variant on a task at a length."""

    variant: str
    task: str
    metric: str
    length: int
    estimate: Estimate
    tokens: int | None = None


@dataclass(frozen=True)
class Results:
    """The rows of an experiment and what is known about them; orders are those of the config, else of appearance."""

    rows: tuple[Row, ...]
    failures: tuple[Row, ...] = ()
    seconds: float = 0.0
    manifest: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, tuple[training.Curve, ...]] = field(default_factory=dict)  # by variant
    runs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # run -> {variant's name there: name here}
    kept_cells: frozenset[tuple[str, str, int]] = frozenset()  # (variant, task, length) kept from an earlier version
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by variant: its methods' files -> digest
    drawn: Mapping[str, Drawn] = field(default_factory=dict)  # by variant: the saved curves of its methods

    @property
    def original_len(self) -> int | None:
        """The trained length in tokens, None if the manifest does not have it."""
        return self.manifest.get("original_len")

    @functools.cached_property
    def variants(self) -> list[str]:
        """Names of the variants that have rows, in the order of the config, then of appearance."""
        configured = [v["name"] for v in self.manifest.get("config", {}).get("variants", ())]
        seen = dict.fromkeys(row["variant"] for row in self.rows)
        return [v for v in configured if v in seen] + [v for v in seen if v not in configured]

    @functools.cached_property
    def tasks(self) -> list[str]:
        """Labels of the tasks that have rows, in order of appearance."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    @functools.cached_property
    def trained(self) -> dict[str, bool]:
        """Whether each variant was trained."""
        flags = {v: False for v in self.variants}
        for row in self.rows:
            flags[row["variant"]] |= bool(row.get("trained"))
        return flags

    def positions(self, variant: str) -> list[Any] | None:
        """Returns the variant's list of position methods, None if the manifest does not have it."""
        for entry in self.manifest.get("config", {}).get("variants", ()):
            if entry["name"] == variant:
                return list(entry.get("positions", []))
        return None

    @functools.cached_property
    def baseline(self) -> str | None:
        """Plain RoPE without training, the variant that the others are compared with; None if there is none."""
        untrained = [v for v in self.variants if not self.trained[v]]
        for variant in untrained:
            if self.positions(variant) == [] or (
                self.positions(variant) is None and variant.lower() in ("plain", "rope")
            ):
                return variant
        return None

    def of(self, task: str, variant: str | None = None, length: int | None = None) -> list[Row]:
        """Returns the rows of a task, optionally of one variant or length only."""
        return list(self._by_cell.get((task, variant, length), ()))

    @functools.cached_property
    def _by_cell(self) -> dict[tuple[str, str | None, int | None], list[Row]]:
        """Rows by (task, variant, length); None stands for all variants or all lengths."""
        groups: dict[tuple[str, str | None, int | None], list[Row]] = {}
        for row in self.rows:
            for variant in (row["variant"], None):
                for length in (row["length"], None):
                    groups.setdefault((row["task"], variant, length), []).append(row)
        return groups

    def only(self, variants: Sequence[str]) -> Results:
        """Returns the results restricted to some variants."""
        training = {variant: runs for variant, runs in self.training.items() if variant in variants}
        return replace(self, rows=tuple(row for row in self.rows if row["variant"] in variants), training=training)

    def lengths(self, task: str) -> list[int]:
        """Returns the measured lengths of a task in tokens, ascending."""
        return sorted({row["length"] for row in self.of(task)})


def _is_row(row: Row) -> bool:
    """Returns whether a row has the fields that all readers rely on; other rows are ignored."""
    key, kind = row.get("key"), row.get("kind")
    if not isinstance(key, str | None) or not isinstance(kind, str | None):
        return False
    if kind == "done":
        return isinstance(row.get("rows"), int) and isinstance(row.get("seconds"), int | float | None)
    if kind is not None:
        return True
    named = isinstance(row.get("variant"), str) and isinstance(row.get("task"), str)
    return named and isinstance(row.get("length"), int) and isinstance(row.get("metrics"), dict)


def collect(rows: Iterable[Row], manifest: Mapping[str, Any] | None = None) -> Results:
    """Returns the results from a stream of rows: only finished cells, only the last measurement of each, and only under
    the keys that the manifest's `cells` lists, if it has any."""
    loose, done, failed = by_cell(rows)
    named = (manifest or {}).get("cells")
    cells = {str(cell): key for key, cell in named.items()} if isinstance(named, dict) else {}

    def counts(key: str, row: Row) -> bool:
        return cells.get(str([row.get(name) for name in ("variant", "task", "length", "seed")]), key) == key

    done = {key: cell for key, cell in done.items() if counts(key, cell[0])}
    failed = {key: row for key, row in failed.items() if counts(key, row)}
    kept = loose + [row for _, cell in done.values() for row in cell]
    seconds = float(sum(marker.get("seconds") or 0.0 for marker, _ in done.values()))
    return Results(tuple(kept), tuple(failed.values()), seconds, dict(manifest or {}))


def by_cell(rows: Iterable[Row]) -> tuple[list[Row], dict[str, tuple[Row, list[Row]]], dict[str, Row]]:
    """Returns (rows without a cell, key of a finished cell -> its "done" row and its rows, key of a failed cell -> its
    "failure" row).

    Rows of an experiment have the "key" of their cell and count only if its "done" row follows; a "failure" row counts
    until its cell is done. Rows without a key always count.
    """
    loose: list[Row] = []
    pending: dict[str, list[Row]] = {}
    done: dict[str, tuple[Row, list[Row]]] = {}
    failed: dict[str, Row] = {}
    for row in rows:
        if not _is_row(row):
            warnings.warn(f"{RESULTS}: {str(row)[:80]} is no row of an experiment; it is left out", stacklevel=2)
            continue
        kind, key = row.get("kind"), row.get("key")
        if kind == "done" and key is not None:
            count, cell = row["rows"], pending.pop(key, [])
            if len(cell) < count:  # a row could not be read, so the cell is unfinished
                continue
            done[key] = (row, cell[-count:] if count else [])
            failed.pop(key, None)
        elif kind == "failure":
            pending.pop(key or "", None)
            failed[key or str(len(failed))] = row
        elif kind is None:
            (loose if key is None else pending.setdefault(key, [])).append(row)
    return loose, done, failed


def score_positions(results: Results, task: str) -> list[tuple[int, int, Score]]:
    """Returns perplexity by position in passes of a task's longest length: (low, high, score) of up to eight ranges."""
    length, out = max(results.lengths(task)), []
    for variant in results.variants:
        rows = results.of(task, variant, length)
        for low, high, mean in loss_curve(rows, pieces=8):
            tokens = sum(n for row in rows for a, b, _, n in row["bins"] if low <= a and b <= high)
            value, below, above = (math.exp(min(x, 700.0)) for x in mean[:3])
            out.append(
                (
                    low,
                    high,
                    Score(
                        variant,
                        task,
                        f"{PERPLEXITY.name} {low}-{high}",
                        length,
                        Estimate(value, below, above, mean.n),
                        tokens,
                    ),
                )
            )
    return out


def estimate(rows: Sequence[Row], metric: Metric) -> Estimate:
    """Returns a metric's value over rows with its 95% interval: perplexity, a share or a mean."""
    if metric.kind == "perplexity":
        return stats.perplexity(rows)
    if metric.share:
        return stats.share(rows, metric.name)
    return stats.mean(rows, metric.name)


def score_all(results: Results) -> list[Score]:
    """Returns every score of the results, ordered by task, metric, variant and length."""
    out = []
    for task in results.tasks:
        rows = results.of(task)
        cells: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            cells.setdefault((row["variant"], row["length"]), []).append(row)
        for metric in metrics.of(rows):
            for variant in results.variants:
                for length in results.lengths(task):
                    cell = cells.get((variant, length))
                    if cell:
                        tokens = sum(row["metrics"]["tokens"] for row in cell) if metric == PERPLEXITY else None
                        out.append(Score(variant, task, metric.name, length, estimate(cell, metric), tokens))
    return out


def loss_curve(rows: Sequence[Row], pieces: int | None = None) -> list[tuple[int, int, Estimate]]:
    """Returns loss against position: (low, high, mean nats per token with its interval over documents) per bin, where
    `high` is exclusive.

    With `pieces`, neighbouring bins are merged into at most that many.
    """
    edges = sorted({(low, high) for row in rows for low, high, _, _ in row.get("bins", ())})
    join = 1 if pieces is None else max(1, -(-len(edges) // pieces))
    groups = [edges[i : i + join] for i in range(0, len(edges), join)]
    place = {edge: (group[0][0], group[-1][1]) for group in groups for edge in group}
    bins: dict[tuple[int, int], dict[str, list[float]]] = {}
    for i, row in enumerate(rows):
        unit = str(row.get("document", i))
        for low, high, total, n in row.get("bins", ()):
            entry = bins.setdefault(place[low, high], {}).setdefault(unit, [0.0, 0.0])
            entry[0] += float("nan") if total is None else total
            entry[1] += n
    curve = []
    for (low, high), units in sorted(bins.items()):
        mean = stats.bootstrap_mean([t for t, _ in units.values()], [w for _, w in units.values()])
        curve.append((low, high, mean))
    return curve


def depth_grid(rows: Sequence[Row], metric: str) -> tuple[list[float], list[int], dict[tuple[float, int], Estimate]]:
    """Returns shares by depth and length: (depths ascending, lengths ascending, estimate per (depth, length)).

    Depths are grouped into fifths if rows have more than eleven different ones.
    """
    rows = [row for row in rows if row.get("depth") is not None and row["metrics"].get(metric) is not None]
    exact = sorted({round(float(row["depth"]), 4) for row in rows})

    def place(depth: float) -> float:
        return round(depth, 4) if len(exact) <= 11 else (min(int(depth * 5), 4) + 0.5) / 5

    cells: dict[tuple[float, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((place(float(row["depth"])), row["length"]), []).append(row)
    depths = sorted({depth for depth, _ in cells})
    return depths, sorted({n for _, n in cells}), {key: stats.share(cell, metric) for key, cell in cells.items()}
