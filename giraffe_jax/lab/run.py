"""An experiment: variants x (training, where a variant has it) x tasks x lengths -> rows, then the report.

The workdir holds everything: `experiment.json` (config, source, what the rows were measured with, versions),
`results.jsonl` (one row per example), `methods/` (texts of own methods), `train/` (a run per trained variant) and the
report's files. Stopped anywhere and started again it goes on with the first cell that is not finished, where a cell is
one task at one length for one variant. Variants, tasks and lengths may be added to a config between two runs; where the
content of what they name has changed (a method's code, a document, weights...) that is said, and the cells that depend
on it are measured again. Several processes may run one experiment at once, on one file system with locks: each takes a
variant that nobody else has. jobs.py starts such processes.
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

WAIT = 0.5  # seconds until a job looks again whether what others measure is finished, or has been left


class Outcome(NamedTuple):
    """What a run leaves: its results, its page, and how many cells failed and will be tried again by the next run."""

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
    """Measures what is not measured yet, writes the report and returns the outcome.

    Args:
      config: ExperimentConfig or the ConfigDict of a config file.
      workdir: local directory, new or of this experiment.
      keep: cells of which something has changed since (a method's code, a document...) keep their rows; by default they
        are measured again.
      say: takes lines of progress; prints them by default.

    Raises:
      ConfigError: a wrong config, or a workdir of another experiment (naming the first key that differs).
    """
    workdir, say = Path(workdir), say or (lambda line: print(line, flush=True) if first_process() else None)
    measure(build(ExperimentConfig, config), workdir, keep=keep, say=say)
    return finish(workdir, say)


def measure(
    config: ExperimentConfig, workdir: Path, *, keep: bool, say: Callable[[str], None], job: Job | None = None
) -> None:
    """Measures what is not measured yet, and writes no report; as one of several jobs (`job`) it leaves to who started
    them what is said once for all, and what others measure is waited for: it is this one's if they are killed."""
    tasks = check(config)
    base = source_of(config)
    known, _ = manifest.identify(config, tasks, workdir)
    if not known:  # a workdir that is refused is left as it is
        check_bound(config, itertools.product(config.variants, [n for t in tasks for n in t.lengths]), base().config)
    with _in_turn(workdir):
        plan = manifest.claim(config, tasks, trainings(config), workdir, base, keep)
        if first_process() and (job is None or job.number == 1):
            report.draw_methods(workdir, plan.manifest)
    if job is None:
        announce(config, workdir, plan, say)
    if plan.left and (job is None or job.number == 1):
        for line in report.too_few(tasks, lambda: base().tokenizer):
            say(f"  {line}")
        if line := beyond_reach(config, plan.left, base().config.original_len):
            say(f"  {line}")
    if plan.left:
        _measure(config, workdir, plan, base, say, job)


def announce(config: ExperimentConfig, workdir: Path, plan: Plan, say: Callable[[str], None], by: str = "") -> None:
    """Says what has changed since the last run, and how much there is to measure."""
    for note in plan.notes:
        say(note)
    if plan.left:
        say(f"{config.name}: {len(plan.left)} of {len(plan.cells)} cells to measure, in {workdir}{by}")


def finish(workdir: Path, say: Callable[[str], None]) -> Outcome:
    """Writes the report of what is there and says where it is and what the main table holds; process 0 alone does."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("results")  # process 0 has written its rows: all of them read the same
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
    """Returns a function that loads the source once and keeps it until its `cache_clear`."""

    @functools.cache
    def base() -> Any:
        from giraffe_jax.loading import load

        return load(config.source, config.overrides, base=config.base)

    return base


def _measure(
    config: ExperimentConfig, workdir: Path, plan: Plan, base: Any, say: Callable[[str], None], job: Job | None
) -> None:
    check_bound(config, ((cell.variant, cell.length) for cell in plan.left), base().config)
    pace = job or Pace(len(plan.left), say)
    with _rows(workdir) as rows:
        waiting = list(_by_model(plan.left))
        if job is not None:
            waiting.sort(key=lambda group: group[0][0].train is None)  # what takes longest first: all end together
        while waiting:
            busy = []
            for (variant, seed), group in waiting:
                with _taken(config, variant, seed, workdir) as mine:
                    if not mine:
                        busy.append(((variant, seed), group))
                        continue
                    done = set(manifest.finished(workdir / RESULTS))  # by others, meanwhile
                    if job is not None:  # what has failed with another job is for the next run to try again
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
    """Returns, in one line, which variants are asked at lengths that their positions, as trained here, do not reach."""
    asked: dict[str, int] = {}
    for cell in cells:
        asked[cell.variant.name] = max(cell.length, asked.get(cell.variant.name, 0))
    found = []
    for variant in config.variants:
        reach, seen = positions.reach(read_with(variant), original_len), 0
        if variant.train is not None:
            data = train_config(config, variant, config.seeds[0]).data
            seen = data.seq_len if data.skip is None else data.skip.target_len
        if reach is not None and asked.get(variant.name, 0) > max(reach, seen):
            found.append(f"{variant.name} {max(reach, seen):,}")
    longest = max(asked.values(), default=0)
    return f"prompts of up to {longest:,} tokens are longer than positions reach: {', '.join(found)}" if found else ""


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
    """The file of rows, open for appending beside other processes; mended first where there are none."""
    if not first_process():
        yield None
        return
    mend(workdir)
    with records.locked(workdir / LOCKS / "rows", shared=True), records.Rows(workdir / RESULTS, shared=True) as rows:
        yield rows


def mend(workdir: Path) -> None:
    """Sets aside what is no row of the file of rows, unless other processes have it open."""
    with records.locked(workdir / LOCKS / "rows", wait=False) as alone:
        if alone:
            records.Rows(workdir / RESULTS).close()


@contextlib.contextmanager
def _taken(config: ExperimentConfig, variant: Variant, seed: int, workdir: Path) -> Iterator[bool]:
    """Takes a variant, with those that are trained as it is, for this process; False where another one has it."""
    import jax

    if jax.process_count() > 1:  # one job: all of its processes go the same way
        yield True
        return
    with records.locked(workdir / LOCKS / folder(config, variant, seed), wait=False) as mine:
        yield mine


def _measure_cell(config: ExperimentConfig, cell: Cell, lm: Any, encoding_for: Callable, rows: Any) -> str:
    from giraffe_jax.evals.run import evaluate

    began, found, about = time.monotonic(), [], pacing.about(cell)
    progress = records.Progress(None, after=20.0 if first_process() else float("inf"), every=30.0)
    try:
        stream = evaluate(
            lm, [cell.task], encoding_for, tokens_per_batch=config.tokens_per_batch, variant=cell.variant.name,
            skip=lambda _, length: length != cell.length,
        )  # fmt: skip
        for row in stream:
            found.append(row)
            _record(rows, cell, row=row)
            progress.update(len(found), f"rows of {about}, {records.duration(time.monotonic() - began)}")
    except (ConfigError, OSError):
        raise
    except Exception as error:
        _record(rows, cell, failure=error)
        return pacing.failed(cell, message(error))
    finally:
        progress.close()
    seconds = time.monotonic() - began
    _record(rows, cell, done={"rows": len(found), "seconds": round(seconds, 3)})
    return pacing.measured(cell, found, seconds)


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


def _by_model(left: list[Cell]) -> Iterator[tuple[tuple[Variant, int], list[Cell]]]:
    """Cells that are measured on the same weights with the same positions, together."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in left:
        groups.setdefault((cell.variant.name, cell.seed), []).append(cell)
    for group in groups.values():
        yield (group[0].variant, group[0].seed), group
