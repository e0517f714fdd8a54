"""The progress of a long job, in one line that is rewritten."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any


def duration(seconds: float) -> str:
    """Returns a time in seconds as text: 8s, 3m20s, 2h05m, 1d04h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


class Progress:
    """A progress line: rewritten in place on a terminal, else printed anew every `every` seconds.

    Work that takes less than `after` seconds prints nothing. With `compiles`, the first update comes after a
    compilation: it shows no time left, and the pace is that of the updates after it.
    """

    def __init__(
        self, total: int | None, *, start: int = 0, every: float = 10.0, after: float = 0.0, file: Any = None,
        clock: Callable[[], float] = time.monotonic, compiles: bool = False,
    ):  # fmt: skip
        self.total, self.every, self.after, self.compiles = total, every, after, compiles
        self.file = sys.stderr if file is None else file
        self.clock = clock
        # If stdout is a pipe (`| tee log`), lines from there would appear in the middle of a line that is rewritten.
        self.tty = self.file.isatty() and (self.file is not sys.stderr or sys.stdout.isatty())
        self._began, self._shown, self._width, self._open = clock(), -math.inf, 0, False
        self._pace_from = start, self._began  # work done and time from which the pace is taken

    def update(self, done: int, text: str, *, force: bool = False) -> None:
        """Shows `done` of `total`, the text, and the time left at the pace so far."""
        now = self.clock()
        if self.compiles:
            self._pace_from, self.compiles = (done, now), False
        pause = 0.1 if self.tty else self.every
        if now - self._began < self.after or (not force and now - self._shown < pause and done != self.total):
            return
        self._shown = now
        remaining = ""
        before, since = self._pace_from
        if done == self.total:
            remaining = f"  {duration(now - self._began)}"
        elif self.total is not None and done > before:
            remaining = f"  {duration((now - since) / (done - before) * (self.total - done))} left"
        head = f"{done}/{self.total}" if self.total is not None else str(done)
        self._print(f"{head}  {text}{remaining}")

    def _print(self, line: str) -> None:
        if self.tty:
            self.file.write("\r" + line.ljust(self._width))
            self._width, self._open = len(line), True
        else:
            self.file.write(line + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """Prints a line of its own, above the progress line."""
        if self._open:
            text = text.ljust(self._width)
            self.file.write("\r")
        self._width, self._open = 0, False
        self.file.write(text + "\n")
        self.file.flush()

    def close(self) -> None:
        """Ends the progress line, so that what is printed next starts on a new one."""
        if self._open:
            self.file.write("\n")
            self.file.flush()
            self._open = False
