"""Progress of a run over its cells, alone or as one of several jobs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from giraffe_jax import evals, records, report
from giraffe_jax.lab.cells import Cell


class Pace:
    """Counts finished cells, and reports after each how long the rest will take at the average pace so far."""

    def __init__(self, cells: int, say: Callable[[str], None]):
        self.cells, self.done, self.measured, self.began, self.say = cells, 0, 0, time.monotonic(), say

    def skip(self, cells: int) -> None:
        """Counts cells that need no measuring, or cannot be measured."""
        self.done += cells

    def begin(self, activity: str) -> None:
        """Does nothing: a run without jobs reports only finished cells."""

    def end(self, line: str) -> None:
        """Counts a measured cell and reports `line` with the time left."""
        self.done, self.measured = self.done + 1, self.measured + 1
        seconds = (time.monotonic() - self.began) / self.measured * (self.cells - self.done)
        remaining = records.duration(seconds) + " left" if self.done < self.cells else "done"
        self.say(f"  {self.done}/{self.cells}  {line}  {remaining}")


class Job:
    """Progress of a process started by jobs.py: reports what it begins; the starter counts the cells.

    Args:
      number: of this job, from 1.
      began: number of rows in the results file when the jobs were started.
      now: called with a description of what this job begins.
    """

    def __init__(self, number: int, began: int, now: Callable[[str], None]):
        self.number, self.began, self.now = number, began, now

    def skip(self, cells: int) -> None:
        """Does nothing: the starter counts cells in the results file."""

    def begin(self, activity: str) -> None:
        """Reports what this job does now."""
        self.now(activity)

    def end(self, line: str) -> None:
        """Does nothing: the starter reports finished cells from the results file."""


def about(cell: Cell) -> str:
    """Returns a cell's variant, task and length in columns."""
    return f"{cell.variant.name:<22} {evals.label(cell.task):<12} {cell.length:>7,}"


def measured(cell: Cell, rows: Sequence[Any], seconds: float) -> str:
    """Returns the progress line of a finished cell, from its rows and its `seconds`."""
    return f"{about(cell)}  {report.brief(rows):<34} {records.duration(seconds):>6}"


def failed(cell: Cell, error: str) -> str:
    """Returns the progress line of a failed cell."""
    return f"{about(cell)}  failed: {error}"
