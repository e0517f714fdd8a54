"""Benchmarks giraffe-jax against transformers on one machine, CPU or GPU: time and peak memory of a model's main uses.

Every measurement is a process of its own (`worker`), so that its peak memory and its failures do not affect others.
Sides take turns within a round, so that a machine that slows down slows both. Both sides get the same weights from one
exported directory, or random weights of the same shapes.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from giraffe_jax import hf
from giraffe_jax.bench.jobs import (
    DECODED,
    DOCUMENT,
    REMAT_ABOVE,
    SHAPES,
    TRAINS,
    Job,
    Kind,
    banded,
    flops,
    job,
    moved,
    shape,
)
from giraffe_jax.bench.table import table
from giraffe_jax.config import ConfigError
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig, num_params
from giraffe_jax.records import write_atomically

__all__ = [
    "DECODED", "DOCUMENT", "SHAPES", "Job", "Kind", "Side", "flops", "job", "moved", "read", "run", "shape", "table",
    "write",
]  # fmt: skip

Side = Literal["giraffe_jax", "transformers"]
GRACE = 60.0  # seconds beyond `minutes` that a running measurement is given to finish


def run(
    source: str | ModelConfig,
    jobs: Sequence[Job],
    sides: Sequence[Side],
    *,
    runs: int = 3,
    dtype: str = "float32",
    param_dtype: str | None = None,
    remat: str | None = None,
    threads: int | None = None,
    minutes: float | None = None,
    say: Callable[[dict[str, Any], list[dict[str, Any]]], None] = lambda machine, rows: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (the machine: its description, matmul_flops and bandwidth per second; one row per measurement).

    A row has run, side, job, seconds, peak_bytes, compile_seconds, tokens_per_second, flops_per_second, note (on the
    side's settings) and fraction: of the machine's matmul peak, or of its bandwidth if `bound` says so. For `decode`,
    seconds are per token. The row of a failed measurement has `error` instead; if it was never started, also `left`.
    Except on a CPU, the first run compiles into an empty JAX compilation cache, which later runs read.

    Args:
      source: a model, see TrainConfig.source; or its shape, for random weights that each side draws itself.
      jobs: what to time.
      sides: which libraries to measure; "transformers" needs the `oracle` extra.
      runs: rounds over all jobs and sides.
      dtype: of activations.
      param_dtype: of weights; by default float32 in training, else `dtype`.
      remat: model.remat in training, "none" or a policy; with a policy, transformers uses gradient checkpointing. By
        default "save_attention" for more than REMAT_ABOVE tokens, else "none".
      threads: CPU cores of every measurement; None: all.
      minutes: after which no measurement is started.
      say: called after each measurement with the machine and all rows so far.

    Raises:
      ConfigError: a wrong job or source.
      RuntimeError: the machine could not be measured.
    """
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    threads = threads or len(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(source, Path(folder) / "model", dtype)
        for requested in jobs:
            banded(model, requested)  # reports mistakes in jobs before anything is started
        settings = dict(path=str(Path(folder) / "model"), dtype=dtype, threads=threads)
        settings |= dict(random=isinstance(source, ModelConfig))
        machine = _worker(settings | dict(side="machine")) | _versions()
        machine |= dict(dtype=dtype, params=num_params(model), source=source if isinstance(source, str) else "random")
        if "error" in machine:
            raise RuntimeError(f"bench: measuring the machine: {machine['error']}")
        if machine["platform"] != "cpu":  # on a CPU, peak memory is the process's and has to include compilation
            settings["cache"] = str(Path(folder) / "cache")
        for number, side_job, side in _order(runs, jobs, sides):
            row: dict[str, Any] = dict(run=number, side=side, job=str(side_job))
            if time.monotonic() > end:
                row |= dict(left=True, error=f"not begun within {minutes:g} minutes")
            else:
                trains = side_job.kind in TRAINS
                policy = "save_attention" if side_job.rows * side_job.length > REMAT_ABOVE else "none"
                case: dict[str, Any] = dict(
                    side=side, kind=side_job.kind, length=side_job.length, rows=side_job.rows, method=side_job.method
                )
                case |= dict(kernel=side_job.kernel, remat=(remat or policy) if trains else "none")
                case |= dict(param_dtype=param_dtype or ("float32" if trains else dtype), platform=machine["platform"])
                limit = None if minutes is None else end + GRACE - time.monotonic()
                result = _worker(settings | case, limit)
                row |= result if "error" in result else _judged(model, side_job, result, machine, case["param_dtype"])
            rows.append(row)
            say(machine, rows)
    return machine, rows


def _write_model(source: str | ModelConfig, path: Path, dtype: str) -> ModelConfig:
    """Writes the model for both sides (for random weights, only its config), and returns the config."""
    if isinstance(source, ModelConfig):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(hf.config_to_json(source, None, dtype=dtype)))
        return source
    loaded = load(source)
    hf.save(loaded.params, loaded.config, loaded.tokenizer, path, dtype=dtype)
    return loaded.config


def _order(runs: int, jobs: Sequence[Job], sides: Sequence[Side]) -> Iterator[tuple[int, Job, Side]]:
    for number in range(runs):
        seen = set()
        for requested in jobs:
            # The side that goes first alternates, since a processor is faster after idling.
            for side in sides if number % 2 == 0 else reversed(sides):
                side_job = requested if side == "giraffe_jax" else requested.peer
                if side_job is not None and (side, side_job) not in seen:
                    seen.add((side, side_job))
                    yield number, side_job, side


def _judged(model: ModelConfig, job: Job, result: dict[str, Any], machine: dict[str, Any], weights: str):
    """Returns a measurement with derived values: rates and fraction of the peak."""
    if result.get("params", num_params(model)) != num_params(model):
        return dict(error=f"it has {result['params']:,} parameters, the model {num_params(model):,}")
    seconds, work = result["seconds"], flops(model, job)
    tokens = job.rows * (DECODED if job.kind == "decode" else job.length)
    row = result | dict(tokens_per_second=tokens / seconds, flops_per_second=work / seconds)
    if job.kind != "decode":
        return row | dict(bound="matmul", fraction=work / seconds / machine["matmul_flops"])
    read = moved(model, job, 4 if weights == "float32" else 2)
    row |= dict(bound="bandwidth", fraction=read / seconds / machine["bandwidth"])
    return row | dict(seconds=seconds / DECODED)  # per decoded token, of all rows


def _versions() -> dict[str, str]:
    versions = dict(python=".".join(map(str, sys.version_info[:3])))
    for name in ("jax", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _worker(settings: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
    """Runs a measurement in a new process; returns the JSON that it printed, or {"error": the reason}."""
    command = [sys.executable, "-m", "giraffe_jax.bench.worker", json.dumps(settings)]
    env = dict(os.environ)
    if "cache" in settings:
        env |= dict(JAX_COMPILATION_CACHE_DIR=settings["cache"], JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")
        env |= dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    if settings["side"] == "transformers":
        env["JAX_PLATFORMS"] = "cpu"  # leaves the device and its memory to the peer
    try:
        process = subprocess.run(command, capture_output=True, text=True, env=env, timeout=limit)
    except subprocess.TimeoutExpired:
        return dict(error=f"stopped after {limit:.0f} s: the minutes were over")
    with contextlib.suppress(ValueError, IndexError):
        return json.loads(process.stdout.splitlines()[-1])
    lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return dict(error=(named or lines)[-1][:500], stderr="\n".join(lines)[-2000:])


def write(path: str | Path, machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes the machine and all rows as JSON lines."""
    write_atomically(Path(path), "".join(json.dumps(row) + "\n" for row in [dict(side="machine") | machine, *rows]))


def read(paths: Sequence[str | Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (machine, rows) of files that `write` wrote on one kind of device; the machine is the first file's.

    Raises:
      ConfigError: a file is not from `write`, or the files are from different kinds of device.
    """
    machines, rows = [], []
    for path in paths:
        try:
            first, *measurements = (json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())
            machines.append(first | {key: first[key] for key in ("device_kind", "matmul_flops", "bandwidth")})
            rows += [row | dict(job=str(job(row["job"])), side=row["side"], run=row["run"]) for row in measurements]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--read {path}: not a file of `giraffe bench --out` ({error}).") from error
        if machines[-1]["device_kind"] != machines[0]["device_kind"]:
            raise ConfigError(
                f"--read {path}: measured on {first['device_kind']}, not on {machines[0]['device_kind']}."
            )
    return machines[0], rows
