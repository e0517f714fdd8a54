"""Side by side with a peer on one machine: time and peak memory of what a model is used for.

Every measurement is a process of its own (`worker`), so that its peak of memory is its own, and sides take turns within
a round, so that a machine that slows down slows both. Both sides get the same weights from one exported directory.
"""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from giraffe_jax import hf
from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig, num_params
from giraffe_jax.records import write_atomically

Kind = Literal["forward", "nll", "train", "packed", "prefill", "decode", "attention", "attention_grad"]
Side = Literal["giraffe_jax", "transformers"]
LONGEST = 2**24  # tokens of a job; positions are float32, which counts so far
DECODED = 64  # tokens of a decode job
MOST_ROWS = 4096
DOCUMENT = 500  # tokens of a document of a packed row


@dataclasses.dataclass(frozen=True)
class Job:
    """What is timed: one kind of work on `rows` sequences of `length` tokens.

    forward: hidden states of all tokens and the last one's logits. nll: the loss of every token. train: loss, gradient
    and AdamW. packed: the same with rows of documents of DOCUMENT tokens. prefill: prompts into a cache, and their last
    logits. decode: DECODED tokens after `length` cached ones. attention, attention_grad: causal attention of one layer,
    and with its gradient.
    """

    kind: Kind
    length: int
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.length}" + (f"x{self.rows}" if self.rows > 1 else "")


def job(text: str) -> Job:
    """Returns the job that `kind:length` or `kind:lengthxrows` says."""
    kind, _, size = text.partition(":")
    kinds = get_args(Kind)
    if kind not in kinds:
        raise ConfigError(f"--jobs {text}: the kind is one of {', '.join(kinds)}.{nearest(kind, kinds)}")
    found = re.fullmatch("([0-9]{1,8})(?:x([0-9]{1,4}))?", size)
    length, rows = (int(found[1]), int(found[2] or 1)) if found else (0, 0)
    if not 2 <= length <= LONGEST or not 1 <= rows <= MOST_ROWS or rows * length > LONGEST:
        raise ConfigError(
            f"--jobs {text}: after the colon come a length and maybe rows, {LONGEST} tokens at most, as in {kind}:2048"
            f" or {kind}:256x8."
        )
    return Job(kind, length, rows)  # type: ignore[arg-type]


def flops(model: ModelConfig, what: Job) -> float:
    """Returns the model FLOPs of a job, two per multiply-add; attention is causal and counted once."""
    tokens = what.rows * (DECODED if what.kind == "decode" else what.length)
    attended = what.length + DECODED / 2 if what.kind == "decode" else what.length / 2
    if what.kind == "packed":  # whole documents, and what is left of the row
        whole, rest = divmod(what.length, DOCUMENT)
        attended = (whole * DOCUMENT**2 + rest**2) / 2 / what.length
    attention = 4.0 * tokens * attended * model.num_heads * model.head_dim
    if what.kind == "attention":
        return attention
    if what.kind == "attention_grad":
        return 3 * attention
    head = model.vocab_size * model.d_model
    matrices = num_params(model) - (1 if model.tie_embeddings else 2) * head
    predicted = what.rows if what.kind in ("forward", "prefill") else tokens
    once = 2.0 * (matrices * tokens + head * predicted) + model.num_layers * attention
    return 3 * once if what.kind in ("train", "packed") else once


def moved(model: ModelConfig, what: Job, itemsize: int) -> float:
    """Returns the bytes that decoding has to read: all matrices and the cache, for every token."""
    cached = 2 * model.num_layers * (what.length + DECODED / 2) * model.num_kv_heads * model.head_dim * what.rows
    head = 0 if model.tie_embeddings else model.vocab_size * model.d_model
    return DECODED * itemsize * (num_params(model) - head + cached)


def run(
    source: str,
    jobs: Sequence[Job],
    sides: Sequence[Side],
    *,
    runs: int = 3,
    dtype: str = "float32",
    threads: int | None = None,
    say: Callable[[dict[str, Any]], None] = lambda row: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Returns (what the machine gives: matmul_flops and bandwidth per second, one row per measurement).

    A row has run, side, job, seconds, peak_bytes, compile_seconds and fraction: of the machine's matmul peak, or of its
    bandwidth where `bound` says so. For `decode` the seconds are a token's.

    Args:
      source: a model; see TrainConfig.source.
      jobs: what to time.
      sides: who; "transformers" needs the `oracle` extra.
      runs: rounds over all jobs and sides.
      dtype: of weights and activations.
      threads: CPU cores of every measurement; None takes all.
      say: takes each row as it comes.
    """
    threads = threads or len(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(source)
        model, path = loaded.config, Path(folder) / "model"
        hf.save(loaded.params, model, loaded.tokenizer, path, dtype=dtype)
        del loaded
        settings = dict(path=str(path), dtype=dtype, threads=threads)
        machine = _worker(settings | dict(side="machine"))
        for number, what, side in _order(runs, jobs, sides):
            got = _worker(settings | dict(side=side, kind=what.kind, length=what.length, rows=what.rows))
            seconds = got["seconds"] / (DECODED if what.kind == "decode" else 1)  # a decoded token of every row
            about = dict(run=number, side=side, job=str(what))
            row = about | got | _fraction(model, what, got["seconds"], machine, dtype) | dict(seconds=seconds)
            rows.append(row)
            say(row)
    return machine, rows


def _order(runs: int, jobs: Sequence[Job], sides: Sequence[Side]) -> Iterator[tuple[int, Job, Side]]:
    for number in range(runs):
        for what in jobs:
            # Who goes first alternates, since a processor that has rested is faster.
            for side in sides if number % 2 == 0 else reversed(sides):
                yield number, what, side


def _fraction(model: ModelConfig, what: Job, seconds: float, machine: dict[str, float], dtype: str) -> dict[str, Any]:
    if what.kind == "decode":
        itemsize = 4 if dtype == "float32" else 2
        return dict(bound="bandwidth", fraction=moved(model, what, itemsize) / seconds / machine["bandwidth"])
    return dict(bound="matmul", fraction=flops(model, what) / seconds / machine["matmul_flops"])


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "giraffe_jax.bench.worker", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"bench: {settings['side']} {settings.get('kind', '')} {settings.get('length', '')}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def table(machine: dict[str, float], rows: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table: medians over runs, and ratios of the peer's median to ours."""
    lines = [
        f"matmul peak {machine['matmul_flops'] / 1e9:.0f} GFLOP/s, memory {machine['bandwidth'] / 1e9:.1f} GB/s",
        "",
        "| | seconds | of peak | memory | transformers: seconds | of peak | memory | speed-up | memory ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["job"] for row in rows):
        ours, theirs = (_median(rows, name, side) for side in get_args(Side))
        cells = [name, *_cells(ours), *_cells(theirs)]
        cells += [_ratio(theirs, ours, "seconds"), _ratio(ours, theirs, "peak_bytes")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(rows: Sequence[dict[str, Any]], name: str, side: str) -> dict[str, float] | None:
    mine = [row for row in rows if row["job"] == name and row["side"] == side]
    keys = ("seconds", "fraction", "peak_bytes")
    return {key: statistics.median(row[key] for row in mine) for key in keys} if mine else None


def _cells(x: dict[str, float] | None) -> list[str]:
    return (
        ["-"] * 3 if x is None else [f"{x['seconds']:.3g}", f"{x['fraction']:.0%}", f"{x['peak_bytes'] / 1e9:.2f} GB"]
    )


def _ratio(over: dict[str, float] | None, under: dict[str, float] | None, key: str) -> str:
    return "-" if over is None or under is None else f"{over[key] / under[key]:.2f}"


def write(path: str | Path, machine: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
    """Writes the machine's figures and all rows as JSON lines."""
    write_atomically(Path(path), "".join(json.dumps(row) + "\n" for row in [dict(side="machine") | machine, *rows]))
