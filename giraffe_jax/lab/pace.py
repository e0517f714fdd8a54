"""How far a run is: what it says of its cells, alone or as one of several jobs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from giraffe_jax import evals, records, report
from giraffe_jax.lab.cells import Cell


class Pace:
    """Counts the cells of a run, and says after each how long the rest will take at the pace of those before."""

    def __init__(self, cells: int, say: Callable[[str], None]):
        self.cells, self.done, self.measured, self.began, self.say = cells, 0, 0, time.monotonic(), say

    def skip(self, cells: int) -> None:
        self.done += cells

    def begin(self, what: str) -> None:
        """A run alone says what it has done."""

    def end(self, line: str) -> None:
        self.done, self.measured = self.done + 1, self.measured + 1
        rest = (time.monotonic() - self.began) / self.measured * (self.cells - self.done)
        left = records.duration(rest) + " left" if self.done < self.cells else "done"
        self.say(f"  {self.done}/{self.cells}  {line}  {left}")


class Job:
    """One of the processes that jobs.py starts: says what it begins, and leaves it to that one to count cells.

    Args:
      number: of this job, from 1.
      began: how many rows there were when the jobs were started.
      now: takes what is begun.
    """

    def __init__(self, number: int, began: int, now: Callable[[str], None]):
        self.number, self.began, self.now = number, began, now

    def skip(self, cells: int) -> None:
        """Counted in the file of rows."""

    def begin(self, what: str) -> None:
        self.now(what)

    def end(self, line: str) -> None:
        """Said by who reads the file of rows."""


def about(cell: Cell) -> str:
    return f"{cell.variant.name:<22} {evals.label(cell.task):<12} {cell.length:>7,}"


def measured(cell: Cell, rows: Sequence[Any], seconds: float) -> str:
    """Returns the line of a cell that is done."""
    return f"{about(cell)}  {report.brief(rows):<34} {records.duration(seconds):>6}"


def failed(cell: Cell, error: str) -> str:
    """Returns the line of a cell that has failed."""
    return f"{about(cell)}  failed: {error}"
