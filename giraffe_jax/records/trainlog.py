"""The log of a training run: rows to a file, scalars to TensorBoard, a line to the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax.records.progress import Progress
from giraffe_jax.records.rows import Rows, plain


class TrainLog:
    """The log of one training run: metrics.jsonl, TensorBoard event files and the progress line, from process 0 only.

    `start` is the step from which training resumes: rows and events of later steps, which are made again, are removed.
    `process` is the index of this process in the job; only process 0 writes and prints.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, total_steps: int | None = None, start: int = 0, process: int = 0,
        tensorboard: bool = True, every: float = 10.0, file: Any = None,
    ):  # fmt: skip
        self.rows = self.board = self.progress = None
        if process != 0:
            return
        self.rows = Rows(os.path.join(workdir, "metrics.jsonl"))
        self.rows.truncate_after(start)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(  # the suffix keeps two starts within one second apart
                str(Path(workdir) / "tensorboard"),
                purge_step=start + 1 if start else None,
                filename_suffix=f".{start}",
            )
        self.progress = Progress(total_steps, start=start, every=every, file=file, compiles=True)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a step: numbers and nested mappings of numbers. Text goes to the rows only."""
        if self.rows is None:
            return
        row = {"step": int(step), **plain(metrics, "metrics")}
        self.rows.append(row)
        if self.board is not None:
            for name, value in _flat(row):
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, int(step))
        if self.progress is not None and "loss" in row:
            self.progress.update(int(step), _line(row))

    def say(self, text: str) -> None:
        """Prints lines that are not metrics: the run's header and its events."""
        if self.progress is not None:
            self.progress.say(text)

    def close(self) -> None:
        """Closes the row file, the event file and the progress line."""
        for part in (self.progress, self.board, self.rows):
            if part is not None:
                part.close()
        self.rows = self.board = self.progress = None

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _line(row: Mapping[str, Any]) -> str:
    loss = row["loss"]
    parts = [f"loss {loss:.4f}" if loss is not None else "loss not finite"]
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
