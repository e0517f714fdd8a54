"""Estimates how long an experiment will take: counts its forward passes and training steps, and times one of each kind.

The tasks run on a stand-in for the model that records the shapes of its inputs and computes nothing. Each shape is then
timed with the source's weights, once per structure of position methods (methods that differ only in the values of
arrays share a program). A few steps of each kind of training run in a temporary folder. Finished work in the workdir is
not counted, and its recorded times are used where they apply. Nothing is written to the workdir.
"""

import contextlib
import dataclasses
import heapq
import math
import statistics
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from giraffe_jax import checkpoint, evals, records
from giraffe_jax.config import ConfigError, build, to_dict
from giraffe_jax.inference import LM
from giraffe_jax.lab import manifest, spec
from giraffe_jax.lab import run as lab_run
from giraffe_jax.lab.cells import Cell, folder, of_training, training_of
from giraffe_jax.lab.clock import Call, Counted, _Clock, structure
from giraffe_jax.lab.manifest import Plan
from giraffe_jax.lab.spec import ExperimentConfig, Variant
from giraffe_jax.model import fit_params
from giraffe_jax.report.scores import RESULTS
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import train
from giraffe_jax.training.workdir import stale

TIMED_STEPS = 3  # training steps to time; the first one compiles


class Part(NamedTuple):
    """One line of an estimate."""

    name: str
    count: str
    seconds: float  # nan if unknown
    how: str  # how it was estimated


class Estimate(NamedTuple):
    """The work left of an experiment, in parts, and the number of finished cells. `str()` gives it as a table."""

    cells: int
    finished: int
    parts: list[Part]
    models: Mapping[str, float] = {}  # seconds per model, each done by one job; all other work is done by every job
    jobs: int = 1

    @property
    def seconds(self) -> float:
        """Wall-clock seconds until all jobs are done; unknown parts are left out."""
        total = sum(part.seconds for part in self.parts if not math.isnan(part.seconds))
        if self.jobs == 1:
            return total
        ends = [0.0] * self.jobs
        for seconds in sorted(self.models.values(), reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds)  # the next free job takes the longest model left
        return total - sum(self.models.values()) + max(ends)

    def __str__(self) -> str:
        shown = [
            (p.name, p.count, "?" if math.isnan(p.seconds) else records.duration(p.seconds), p.how) for p in self.parts
        ]
        left = self.cells - self.finished
        if not left:
            return f"all {self.cells:,} cells are measured, nothing is left to do"
        lines = [f"{left:,} of {self.cells:,} cells are left to measure"]
        widths = [max((len(row[i]) for row in shown), default=0) for i in range(3)]
        for what, count, seconds, how in shown:
            lines.append(f"  {what:<{widths[0]}}  {count:<{widths[1]}}  {seconds:>{widths[2]}}  {how}".rstrip())
        who = "One process on this machine takes"
        if self.jobs > 1:
            who = f"These are times of one job. {self.jobs} jobs side by side on this machine take"
        if not any(math.isnan(part.seconds) for part in self.parts):
            return "\n".join([*lines, f"{who} about {records.duration(self.seconds)}."])
        known = f"{who} about {records.duration(self.seconds)} for the rest."
        return "\n".join([*lines, f"Parts marked ? cannot be estimated. {known}"])


def estimate(
    config: ExperimentConfig | Any, workdir: str | Path, say: Callable[[str], None] = print, *, keep: bool = False,
    jobs: int = 1,
) -> Estimate:  # fmt: skip
    """Returns the work left of an experiment and how long this machine will take for it.

    Args:
      config: ExperimentConfig or the ConfigDict of a config file.
      workdir: as for `lab_run.run`; need not exist.
      say: called with lines of progress.
      keep: as for `lab_run.run`.
      jobs: number of processes that will do the work; this process must run on the share of one (shares.py).

    Raises:
      ConfigError: a wrong config, a workdir of another experiment, or several processes.
    """
    if jax.process_count() > 1:
        raise ConfigError(f"--dry-run: times one process, and this is one of {jax.process_count()}.")
    config = build(ExperimentConfig, config)
    tasks, workdir = spec.check(config), Path(workdir)
    base = lab_run.source_of(config)
    plan = manifest.plan(config, tasks, spec.trainings(config), workdir, keep=keep)
    for note in plan.notes:
        say(note)
    pending, parts, models = plan.pending, [], defaultdict(float)
    if pending:
        spec.check_bound(config, ((cell.variant, cell.length) for cell in pending), base().config)
        parts += _trainings(config, plan, workdir, base, models, say)
        parts += _measurements(config, pending, workdir, base, models, say)
    return Estimate(len(plan.cells), len(plan.cells) - len(pending), parts, models, jobs)


def _measurements(
    config: ExperimentConfig, pending: Sequence[Cell], workdir: Path, base: Callable[[], LM], models: dict[str, float],
    say: Callable[[str], None],
) -> list[Part]:  # fmt: skip
    lm = _with_learned(base(), [cell.variant for cell in pending])
    clock = _Clock(dataclasses.replace(lm, config=dataclasses.replace(lm.config, positions=())))
    measured = _seconds_of_cells(workdir, {v.name: structure(clock.bind(v, 1)) for v in config.variants})
    parts = []
    for label in dict.fromkeys(evals.label(cell.task) for cell in pending):
        task_cells = [cell for cell in pending if evals.label(cell.task) == label]
        lengths = sorted({cell.length for cell in task_cells})
        seconds, known, failed = 0.0, 0, ""
        took_of: dict[str, float] = defaultdict(float)
        for length in lengths:
            new = []  # cells without a finished cell of the same structure, task and length
            for cell in (cell for cell in task_cells if cell.length == length):
                known_seconds = measured.get((structure(clock.bind(cell.variant, 1)), label, length))
                if known_seconds is None:
                    new.append(cell)
                else:
                    known += 1
                    took_of[folder(config, cell.variant, cell.seed)] += known_seconds
            if not new:
                continue
            say(f"timing {label} at {length:,} tokens")
            try:
                calls, building = _count(clock.lm, new[0], config.tokens_per_batch)
                # Examples are built once per seed and cached.
                seconds += building * len({cell.seed for cell in new})
                for cell in new:
                    of_cell = clock.seconds(calls, clock.bind(cell.variant, length))
                    took_of[folder(config, cell.variant, cell.seed)] += of_cell
            except (ConfigError, OSError):
                raise
            except Exception as error:
                seconds, failed = math.nan, f"{spec.message(error)}"
                break
        if not failed:
            seconds += sum(took_of.values())
            for name, model_seconds in took_of.items():
                models[name] += model_seconds
        span = f"{lengths[0]:,}" + (f" to {lengths[-1]:,}" if len(lengths) > 1 else "")
        how = failed or (known and f"{known:,} of them as long as finished cells like them took") or ""
        parts.append(Part(label, f"{len(task_cells):,} cells of {span} tokens", seconds, how))
    if clock.compiled:
        parts.append(Part("compilation", f"{len(clock.compiled)} programs", sum(clock.compiled.values()), ""))
    return parts


def _with_learned(lm: LM, variants: Sequence[Variant]) -> LM:
    """Returns the model with freshly initialised parameters that the variants' trainings add: for timing, only shapes
    matter."""
    params = loaded = traverse_util.flatten_dict(lm.params)
    for variant in {v.name: v for v in variants if v.train is not None}.values():
        config = dataclasses.replace(lm.config, positions=variant.positions)
        params = traverse_util.flatten_dict(fit_params(config, lm.params, jax.random.key(0))) | params
    return (
        lm if params.keys() == loaded.keys() else dataclasses.replace(lm, params=traverse_util.unflatten_dict(params))
    )


def _count(lm: LM, cell: Cell, tokens_per_batch: int) -> tuple[Counter[Call], float]:
    """Returns the model calls of a cell, and the seconds of its other work: preparing prompts and scoring outputs."""
    stand_in, began = Counted(**{f.name: getattr(lm, f.name) for f in dataclasses.fields(lm)}), time.monotonic()
    rows = evals.module(cell.task.name).rows
    for _ in rows(cell.task, stand_in, cell.length, lm.config.bind(cell.length), tokens_per_batch=tokens_per_batch):
        pass
    return Counter(stand_in.calls), time.monotonic() - began


def _seconds_of_cells(workdir: Path, kinds: Mapping[str, Hashable]) -> dict[tuple[Hashable, str, int], float]:
    """Returns (structure, task, length) -> median seconds of finished cells.

    Args:
      workdir: of the experiment.
      kinds: the structure of each variant, by name.
    """
    timings: dict[tuple[Hashable, str, int], list[float]] = {}
    if (workdir / RESULTS).is_file():
        for row in records.read_rows(workdir / RESULTS, warnings.warn):
            if row.get("kind") == "done" and row["variant"] in kinds:
                timings.setdefault((kinds[row["variant"]], row["task"], row["length"]), []).append(row["seconds"])
    return {cell: statistics.median(seconds) for cell, seconds in timings.items()}


def _trainings(
    config: ExperimentConfig, plan: Plan, workdir: Path, base: Any, models: dict[str, float], say: Callable[[str], None]
) -> list[Part]:
    """Returns a part for each kind of training; one kind may differ in array values of positions, seeds and steps."""
    runs = {training_of(config, cell.variant, cell.seed, workdir): cell for cell in plan.pending if cell.variant.train}
    if not runs:
        return []
    model = base().config
    base.cache_clear()  # frees memory: training loads its own copy
    kinds: dict[Hashable, list[tuple[TrainConfig, int, str]]] = {}
    took: dict[Hashable, list[float]] = {}  # seconds of a step
    for where, cell in runs.items():
        run = spec.train_config(config, cell.variant, cell.seed)
        kind = _kind(run, structure(model.bind(scaling=cell.variant.positions)))
        steps_done, seconds = _so_far(where)
        if stale(where, of_training(plan.contents, cell.variant, run), cell.variant.positions):
            steps_done = 0  # it will be trained from the start
        kinds.setdefault(kind, []).append((run, max(0, run.steps - steps_done), where.name))
        took.setdefault(kind, []).extend(seconds)
    parts = []
    for kind, members in kinds.items():
        run, steps = members[0][0], sum(steps for _, steps, _ in members)
        tokens = run.data.batch_size * run.data.seq_len
        if took[kind]:
            start, step = 0.0, statistics.median(took[kind])
            how = "at the speed of the runs that have begun"
        else:
            say(f"timing {TIMED_STEPS} training steps of {run.data.batch_size} x {run.data.seq_len:,} tokens")
            start, step = _time_training(run)
            how = f"{step:.3g} s a step, and {start:.0f} s a run to load, compile and save"
        for _, count, name in members:
            models[name] += start + count * step
        parts.append(
            Part(
                "training",
                f"{len(members)} run{'s' * (len(members) > 1)}, {steps:,} steps of {tokens:,} tokens",
                len(members) * start + steps * step,
                how,
            )
        )
    return parts


def _kind(run: TrainConfig, of_positions: Hashable) -> Hashable:
    values = to_dict(run)
    model = {key: value for key, value in values.pop("model").items() if key != "positions"}
    data = {key: value for key, value in values.pop("data").items() if key != "seed"}
    rest = {key: value for key, value in values.items() if key not in ("seed", "steps")}
    return records.digest([model, data, rest]), of_positions


def _so_far(where: Path) -> tuple[int, list[float]]:
    """Returns the last saved step of a training, and the seconds of each of its steps."""
    if not checkpoint.is_workdir(where):
        return 0, []
    with checkpoint.manager(where) as checkpoints:
        steps_done = max(checkpoint.steps(checkpoints), default=0)
    with contextlib.suppress(FileNotFoundError):
        rows = list(records.read_rows(where / "metrics.jsonl", warnings.warn))
        return steps_done, [row["tokens"] / row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    return steps_done, []


def _time_training(run: TrainConfig) -> tuple[float, float]:
    """Returns (seconds to load, compile and save; seconds per step)."""
    optim = dataclasses.replace(run.optim, schedule="constant", decay_steps=None, warmup_steps=0)
    few = dict(steps=TIMED_STEPS, save_every=TIMED_STEPS, optim=optim, eval_data=None)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        train(dataclasses.replace(run, **few), folder, quiet=True)
        elapsed = time.monotonic() - began
        _, seconds = _so_far(Path(folder))
    step = seconds[-1]
    return max(0.0, elapsed - TIMED_STEPS * step), step
