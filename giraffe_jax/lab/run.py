"""Runs an experiment: variants (trained where their config says so) x tasks x lengths -> rows, then the report.

The workdir holds everything: `experiment.json` (config, source, what the rows were measured with, versions),
`results.jsonl` (one row per example), `methods/` (the code of the user's methods), `train/` (a run per trained variant)
and the report's files. A stopped run resumes with the first unfinished cell; a cell is one task at one length for one
variant. Variants, tasks and lengths may be added to a config between two runs. If the content of something that the
config names has changed (a method's code, a document, weights...), the run says so and measures the cells that depend
on it again. Several processes may run one experiment at once, on one file system with locks: each claims a variant that
no other one has. jobs.py starts such processes.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_jax import evals, positions, records, report
from giraffe_jax.config import ConfigError, build
from giraffe_jax.lab import manifest
from giraffe_jax.lab import pace as pacing
from giraffe_jax.lab.cells import All, Cell, folder
from giraffe_jax.lab.manifest import Plan, first_process
from giraffe_jax.lab.pace import Job, Pace
from giraffe_jax.lab.spec import (
    ExperimentConfig,
    Variant,
    check,
    check_bound,
    message,
    read_with,
    train_config,
    trainings,
)
from giraffe_jax.lab.trained import LOCKS, _prepare
from giraffe_jax.report.scores import RESULTS, Results

WAIT = 0.5  # seconds between a job's checks whether the variants of other jobs are finished or released


class Outcome(NamedTuple):
    """The outcome of a run: its results, its page, and the number of failed cells, which the next run tries again."""

    results: Results
    page: Path
    failures: int


def run(
    config: ExperimentConfig | Any,
    workdir: str | Path,
    *,
    keep: bool = False,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Measures all unfinished cells, writes the report and returns the outcome.

    Args:
      config: ExperimentConfig or the ConfigDict of a config file.
      workdir: local directory, new or of this experiment.
      keep: keep the rows of cells whose contents have changed (a method's code, a document...); by default those cells
        are measured again.
      say: called with lines of progress; prints them by default.

    Raises:
      ConfigError: a wrong config, or a workdir of another experiment (naming the first key that differs).
    """
    workdir, say = Path(workdir), say or (lambda line: print(line, flush=True) if first_process() else None)
    measure(build(ExperimentConfig, config), workdir, keep=keep, say=say)
    return finish(workdir, say)


def measure(
    config: ExperimentConfig, workdir: Path, *, keep: bool, say: Callable[[str], None], job: Job | None = None
) -> None:
    """Measures all unfinished cells and writes no report.

    As one of several jobs (`job`), it leaves announcements to the starter, and waits for the variants of other jobs: if
    one is killed, another takes its variants over.

    Raises:
      ConfigError: as `run`.
    """
    tasks = check(config)
    base = source_of(config)
    known, _ = manifest.identify(config, tasks, workdir)
    if not known:  # checks the config before a new workdir is written
        check_bound(config, itertools.product(config.variants, [n for t in tasks for n in t.lengths]), base().config)
    with _in_turn(workdir):
        plan = manifest.claim(config, tasks, trainings(config), workdir, base, keep)
        if first_process() and (job is None or job.number == 1):
            report.draw_methods(workdir, plan.manifest)
    if job is None:
        announce(config, workdir, plan, say)
    if plan.pending and (job is None or job.number == 1):
        for line in report.too_few(tasks, lambda: base().tokenizer):
            say(f"  {line}")
        if line := beyond_reach(config, plan.pending, base().config.original_len):
            say(f"  {line}")
    if plan.pending:
        _measure(config, workdir, plan, base, say, job)


def announce(config: ExperimentConfig, workdir: Path, plan: Plan, say: Callable[[str], None], by: str = "") -> None:
    """Prints what has changed since the last run and how many cells there are to measure; `by` is appended."""
    for note in plan.notes:
        say(note)
    if plan.pending:
        say(f"{config.name}: {len(plan.pending)} of {len(plan.cells)} cells to measure, in {workdir}{by}")


def finish(workdir: Path, say: Callable[[str], None]) -> Outcome:
    """Writes the report of all rows and prints its main table and path; only process 0 writes and prints."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("results")  # until process 0 has written its rows, so all read the same
    results = report.read([workdir])
    if not first_process():
        return Outcome(results, workdir / "report.html", len(results.failures))
    page = report.write([workdir], workdir)
    say("")
    say(report.main_tables(results))
    if results.failures:
        say(f"{len(results.failures)} cells failed; the same command tries them again:")
        for row in results.failures:
            say(f"  {row['variant']}, {row['task']}, {row['length']}: {row['error']}")
    say(f"report: {page}")
    return Outcome(results, page, len(results.failures))


def source_of(config: ExperimentConfig) -> Any:
    """Returns a function that loads the source at its first call and keeps it until its `cache_clear()`."""

    @functools.cache
    def base() -> Any:
        from giraffe_jax.loading import load

        return load(config.source, config.overrides, base=config.base)

    return base


def _measure(
    config: ExperimentConfig, workdir: Path, plan: Plan, base: Any, say: Callable[[str], None], job: Job | None
) -> None:
    check_bound(config, ((cell.variant, cell.length) for cell in plan.pending), base().config)
    pace = job or Pace(len(plan.pending), say)
    with _rows(workdir) as rows:
        waiting = list(_by_model(plan.pending))
        if job is not None:
            waiting.sort(key=lambda group: group[0][0].train is None)  # trained variants first: they take longest
        while waiting:
            busy = []
            for (variant, seed), group in waiting:
                with _taken(config, variant, seed, workdir) as claimed:
                    if not claimed:
                        busy.append(((variant, seed), group))
                        continue
                    done = set(manifest.finished(workdir / RESULTS))  # other processes may have finished some
                    if job is not None:  # cells that failed in another job are left to the next run
                        done |= manifest.failed(workdir / RESULTS, after=job.began)
                    todo = [cell for cell in group if cell.key not in done]
                    pace.skip(len(group) - len(todo))
                    if todo:
                        _measure_variant(config, plan.contents, variant, seed, todo, workdir, base, rows, pace, say)
            if len(busy) == len(waiting) and job is None:
                say(f"  {sum(len(group) for _, group in busy)} cells are being measured by other processes")
                break
            if len(busy) == len(waiting):
                pace.begin("waits for the others")
                time.sleep(WAIT)
            waiting = busy


def beyond_reach(config: ExperimentConfig, cells: Iterable[Cell], original_len: int) -> str:
    """Returns a line naming the variants that are evaluated beyond the context length of their positions and of their
    training here; empty if there is none."""
    lengths: dict[str, int] = {}
    for cell in cells:
        lengths[cell.variant.name] = max(cell.length, lengths.get(cell.variant.name, 0))
    beyond = []
    for variant in config.variants:
        reach, seen = positions.reach(read_with(variant), original_len), 0
        if variant.train is not None:
            data = train_config(config, variant, config.seeds[0]).data
            seen = data.seq_len if data.skip is None else data.skip.target_len
        if reach is not None and lengths.get(variant.name, 0) > max(reach, seen):
            beyond.append(f"{variant.name} {max(reach, seen):,}")
    longest = max(lengths.values(), default=0)
    return f"prompts of up to {longest:,} tokens exceed the context length of: {', '.join(beyond)}" if beyond else ""


def _measure_variant(
    config: ExperimentConfig, contents: All, variant: Variant, seed: int, todo: list[Cell], workdir: Path, base: Any,
    rows: Any, pace: Pace | Job, say: Callable[[str], None],
) -> None:  # fmt: skip
    pace.begin(f"{variant.name}, {'training' if variant.train is not None else 'loading'}")
    try:
        lm, encoding_for = _prepare(config, contents, variant, seed, workdir, base, say)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        for cell in todo:
            _record(rows, cell, failure=error)
        pace.skip(len(todo))
        say(f"  {variant.name}: failed before it could be measured: {message(error)}")
        return
    for cell in todo:
        pace.begin(f"{cell.variant.name}, {evals.label(cell.task)}, {cell.length:,}")
        pace.end(_measure_cell(config, cell, lm, encoding_for, rows))


@contextlib.contextmanager
def _in_turn(workdir: Path) -> Iterator[None]:
    with records.locked(workdir / LOCKS / "manifest") if first_process() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _rows(workdir: Path) -> Iterator[records.Rows | None]:
    """Opens the results file for appending, shared with other processes; repaired first if no other has it open."""
    if not first_process():
        yield None
        return
    mend(workdir)
    with records.locked(workdir / LOCKS / "rows", shared=True), records.Rows(workdir / RESULTS, shared=True) as rows:
        yield rows


def mend(workdir: Path) -> None:
    """Moves damaged lines out of the results file, unless other processes have it open."""
    with records.locked(workdir / LOCKS / "rows", wait=False) as acquired:
        if acquired:
            records.Rows(workdir / RESULTS).close()


@contextlib.contextmanager
def _taken(config: ExperimentConfig, variant: Variant, seed: int, workdir: Path) -> Iterator[bool]:
    """Claims a variant, with those that share its training, for this process; yields False if another one has it."""
    import jax

    if jax.process_count() > 1:  # the processes of one multi-host job work on the same variant
        yield True
        return
    with records.locked(workdir / LOCKS / folder(config, variant, seed), wait=False) as claimed:
        yield claimed


def _measure_cell(config: ExperimentConfig, cell: Cell, lm: Any, encoding_for: Callable, rows: Any) -> str:
    from giraffe_jax.evals.run import evaluate

    began, cell_rows, label = time.monotonic(), [], pacing.about(cell)
    progress = records.Progress(None, after=20.0 if first_process() else float("inf"), every=30.0)
    try:
        stream = evaluate(
            lm, [cell.task], encoding_for, tokens_per_batch=config.tokens_per_batch, variant=cell.variant.name,
            skip=lambda _, length: length != cell.length,
        )  # fmt: skip
        for row in stream:
            cell_rows.append(row)
            _record(rows, cell, row=row)
            progress.update(len(cell_rows), f"rows of {label}, {records.duration(time.monotonic() - began)}")
    except (ConfigError, OSError):
        raise
    except Exception as error:
        _record(rows, cell, failure=error)
        return pacing.failed(cell, message(error))
    finally:
        progress.close()
    seconds = time.monotonic() - began
    _record(rows, cell, done={"rows": len(cell_rows), "seconds": round(seconds, 3)})
    return pacing.measured(cell, cell_rows, seconds)


def _record(rows: Any, cell: Cell, *, row: Any = None, done: Any = None, failure: Exception | None = None) -> None:
    if rows is None:
        return
    head = {"variant": cell.variant.name, "task": evals.label(cell.task), "length": cell.length}
    tail = {"trained": cell.variant.train is not None, "seed": cell.seed, "key": cell.key}
    if failure is not None:
        rows.append({"kind": "failure"} | head | tail | {"error": message(failure)})
    elif done is not None:
        rows.append({"kind": "done"} | head | tail | done)
        rows.sync()
    else:
        rows.append(row | tail)


def _by_model(cells: list[Cell]) -> Iterator[tuple[tuple[Variant, int], list[Cell]]]:
    """Yields ((variant, seed), cells): the cells grouped by variant and seed, which use the same weights."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.variant.name, cell.seed), []).append(cell)
    for group in groups.values():
        yield (group[0].variant, group[0].seed), group
