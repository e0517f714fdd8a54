"""`giraffe run --jobs=N`: starts, follows and ends processes that share one experiment.

Each job runs the same command, with its number in the environment, on its share of the machine (shares.py), and claims
variants like any process that is started beside others (run.py). The starter reads its output: lines that begin with
NOW say what the job does, progress lines go into the starter's own progress line, and other lines are printed
unchanged. Finished cells are read from the results file.

A job ends itself if its starter is gone.
"""

import collections
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax import records
from giraffe_jax.config import ConfigError, build
from giraffe_jax.lab import manifest, pace
from giraffe_jax.lab import run as lab_run
from giraffe_jax.lab.cells import Cell, folder
from giraffe_jax.lab.shares import Share, in_words, inside, shares
from giraffe_jax.lab.spec import ExperimentConfig, check, trainings
from giraffe_jax.records.signals import told_to_end
from giraffe_jax.report.scores import RESULTS

JOB = "GIRAFFE_JOB"  # environment variable of a job: "its number, from 1:number of rows when the jobs were started"
NOW = "\x1e"
PROGRESS = re.compile(r"\d+(/\d+)?  ")  # as records.Progress writes it
# Like the installed command, a job does not import from the current folder; ROOT leads it to this same package.
COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); sys.argv[0] = 'giraffe'; from giraffe_jax.cli import main; "
COMMAND += "sys.exit(main())"
ROOT = Path(__file__).parents[2]
REFUSED = 2  # the exit status of a wrong request
KILLED = "told to end twice: all jobs are killed; the same command goes on where it can."


def run(
    config: ExperimentConfig | Any, workdir: str | Path, words: Sequence[str], jobs: int, *, keep: bool = False
) -> int:
    """Runs an experiment in several processes, writes the report and returns the exit status: 1 if cells failed or are
    left, else 0.

    Args:
      config: ExperimentConfig or the ConfigDict of a config file.
      workdir: as for `run.run`.
      words: the command-line words of each job, after `giraffe`.
      jobs: number of processes; fewer if there are fewer models to measure, or fewer cores.
      keep: as for `run.run`.

    Raises:
      ConfigError: as `run.run` and `shares.shares`.
      RuntimeError: all jobs ended before they measured anything.
      KeyboardInterrupt: a SIGINT or SIGTERM ended all jobs.
    """
    config, workdir = build(ExperimentConfig, config), Path(workdir)
    plan = manifest.plan(config, check(config), trainings(config), workdir, keep=keep)
    models = len({folder(config, cell.variant, cell.seed) for cell in plan.pending})
    given = shares(max(1, min(jobs, models)))
    if len(given) < 2:
        return 1 if lab_run.run(config, workdir, keep=keep).failures else 0
    began = 0
    if (workdir / RESULTS).is_file():
        lab_run.mend(workdir)
        began = sum(1 for _ in records.read_rows(workdir / RESULTS, lambda line: None))
    shown = _Shown(plan.pending, workdir / RESULTS)
    reason = f"{models} models are left" if len(given) == models else "there are no more cores"
    fewer = f" (not {jobs}: {reason})" if len(given) < jobs else ""
    lab_run.announce(config, workdir, plan, shown.say, f", by {in_words(given)}{fewer}")
    refused = _follow(given, words, began, shown)
    import jax

    jax.config.update("jax_platforms", "cpu")  # the report needs no device, and others may want it
    if len(refused) == len(given):
        raise ConfigError(refused[0])
    if not (workdir / RESULTS).is_file():
        raise RuntimeError(f"{len(given)} jobs have ended before they measured anything; their last lines say why.")
    outcome = lab_run.finish(workdir, shown.say)
    if any("RESOURCE_EXHAUSTED" in str(row.get("error")) for row in outcome.results.failures):
        shown.say("a device ran out of memory: with a smaller --jobs each job gets more of it")
    if shown.pending:
        shown.say(f"{len(shown.pending)} cells are not measured; the same command, with any --jobs, resumes with them")
    return 1 if outcome.failures or shown.pending else 0


def work(config: ExperimentConfig | Any, workdir: str | Path, job_value: str, *, keep: bool = False) -> None:
    """Measures as one job; `job_value` is the value of JOB. Its output is meant for the starter."""
    number, began = map(int, job_value.split(":"))
    job = lab_run.Job(number, began, lambda activity: print(f"{NOW}{activity}", flush=True))

    def say(line: str) -> None:
        print(line, flush=True)

    lab_run.measure(build(ExperimentConfig, config), Path(workdir), keep=keep, say=say, job=job)


def end_with_starter() -> None:
    """Watches standard input in a thread, and sends this process a SIGINT when the starter is gone and so closes it."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        nobody = os.open(os.devnull, os.O_WRONLY)  # replaces the broken pipes of stdout and stderr
        os.dup2(nobody, 1)
        os.dup2(nobody, 2)
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as after `&`
        os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


class _Job:
    """A started process and its latest output."""

    def __init__(self, number: int, share: Share, words: Sequence[str], env: Mapping[str, str]):
        self.number, self.now, self.detail = number, "starting", ""
        self.last: collections.deque[str] = collections.deque(maxlen=5)
        with inside(share):
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, str(ROOT), *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env={**env, **os.environ, **share.env},
                process_group=0,  # a terminal's Ctrl-C reaches only the starter, which passes it on
            )  # fmt: skip

    def listen(self, heard: queue.SimpleQueue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self, line.rstrip("\n")))
        heard.put((self, None))


class _Shown:
    """The display of a run: one progress line for all jobs; above it, finished cells and the jobs' output.

    `pending` holds the cells, by key, that have neither finished nor failed.
    """

    def __init__(self, cells: Sequence[Cell], rows: Path):
        self.pending, self.total = {cell.key: cell for cell in cells}, len(cells)
        self.path, self.at = rows, rows.stat().st_size if rows.is_file() else 0
        self.cell_rows: dict[str, list[dict[str, Any]]] = {}
        self.warned: set[str] = set()
        self.progress = records.Progress(self.total, every=30.0, after=0.0 if sys.stdout.isatty() else 30.0,
                                         file=sys.stdout)  # fmt: skip

    def say(self, line: str) -> None:
        self.progress.say(line)

    def hear(self, job: _Job, line: str) -> None:
        if line.startswith(NOW):
            job.now, job.detail = line.removeprefix(NOW), ""
        elif PROGRESS.match(line):
            job.detail = f" {' '.join(line.split())}"
        elif line.strip():
            job.last.append(line)
            warning = line.startswith("giraffe: warning: ")
            if warning and line not in self.warned:
                self.warned.add(line)
                self.say(line)
            elif not line.startswith("giraffe: "):  # `ended` prints a job's last error
                self.say(f"  [{job.number}] {line.strip()}")

    def refresh(self, jobs: Sequence[_Job]) -> None:
        """Prints the cells finished since the last call, and what the jobs do now."""
        for row in self._rows():
            self._count(row)
        if self.pending:
            width = None
            if self.progress.tty:  # leaves room for the count and the time left
                width = max(20, (shutil.get_terminal_size().columns - 30) // max(len(jobs), 1) - 2)
            text = "  ".join(f"[{job.number}] {job.now}{job.detail}"[:width] for job in jobs)
            self.progress.update(self.total - len(self.pending), text)

    def ended(self, job: _Job, others: int) -> None:
        """Prints how a job ended before its work was done."""
        code = job.process.returncode
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"has ended with status {code}"
        rest = "; the others go on with its cells" if others else ""
        self.say(f"  [{job.number}] {how} at: {job.now}{rest}{'. Its last lines:' if job.last else ''}")
        for line in job.last:
            self.say(f"      {line.strip()}")

    def _count(self, row: Mapping[str, Any]) -> None:
        key, kind = row.get("key"), row.get("kind")
        if key not in self.pending:
            return
        if kind is None:
            self.cell_rows.setdefault(key, []).append(dict(row))
            return
        cell, rows = self.pending.pop(key), self.cell_rows.pop(key, [])
        if kind == "failure":
            line = pace.failed(cell, row["error"])
        else:  # a job that was killed may have left some rows before these
            line = pace.measured(cell, rows[len(rows) - row["rows"] :], row["seconds"])
        self.say(f"  {self.total - len(self.pending)}/{self.total}  {line}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.at += len(line)
                with contextlib.suppress(ValueError):  # what a killed job was writing
                    row = json.loads(line)
                    if isinstance(row, dict):
                        yield row


def _follow(shares: Sequence[Share], words: Sequence[str], began: int, shown: _Shown) -> list[str]:
    """Starts the jobs and follows them to their end; returns the messages of those that rejected the request."""
    jobs: list[_Job] = []
    refused: list[str] = []
    heard: queue.SimpleQueue[tuple[_Job, str | None]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        # Jobs share one compilation cache in a fresh folder: a shared folder could hold someone else's executables.
        compiled = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        stack.callback(shown.progress.close)
        told = stack.enter_context(told_to_end(KILLED))
        for number, share in enumerate(shares, 1):
            jobs.append(_Job(number, share, words, {JOB: f"{number}:{began}", "JAX_COMPILATION_CACHE_DIR": compiled}))
            stack.enter_context(jobs[-1].process)
            stack.callback(jobs[-1].process.kill)
            threading.Thread(target=jobs[-1].listen, args=(heard,), daemon=True).start()
        alive, passed_on = list(jobs), False
        while alive:
            if told and not passed_on:
                passed_on = True
                shown.say("ending all jobs, each where it can go on; the same again ends them at once")
                for job in alive:
                    job.process.send_signal(told[0])
            with contextlib.suppress(queue.Empty):
                job, line = heard.get(timeout=0.2)
                if line is not None:
                    shown.hear(job, line)
                else:
                    alive.remove(job)
                    job.process.wait()
                    if job.process.returncode and not told:
                        shown.ended(job, len(alive))
                    if job.process.returncode == REFUSED:
                        refused.append(job.last[-1].removeprefix("giraffe: ") if job.last else "refused")
            shown.refresh(alive)
        if told:
            done = shown.total - len(shown.pending)
            raise KeyboardInterrupt(
                f"all jobs have ended, with {done} of {shown.total} cells measured; the same command, with any --jobs, "
                "goes on from there."
            )
    return refused
