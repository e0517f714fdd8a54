"""Checkpoints with orbax: the whole training state, or parameters alone, restored onto any mesh.

A training checkpoint holds parameters, optimizer state, step and key, and beside them, as JSON, the data position and
the resolved config. Writes are asynchronous and atomic: a checkpoint exists whole or not at all, and in it the size
and SHA-256 of each of its files (checksums.json), by which every restore verifies it. SHA-256 finds any change, costs
less than reading the file where the processor computes it, and is what `sha256sum` prints. Checkpoints without that
file are used unverified: old ones, and those on object stores, which keep checksums themselves.

In a job of several processes all of them call these functions together, and all get the same answer.
"""

import asyncio
import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from giraffe_jax.config import ConfigError, FrozenDict
from giraffe_jax.sharding import paths

FOLDER = "checkpoints"
DAMAGED = "damaged"  # beside FOLDER: checkpoints that were moved out of a run's way
SUMS = "checksums.json"  # in the step's folder, so that it is moved and deleted with it
METRIC = "eval_loss"  # the smallest of which is the best checkpoint's
MEASURED_ON = "eval_data"  # saved with it: a number that stands for the data, since losses on others do not compare
STEP = r"0|[1-9][0-9]{0,17}"  # a step as its folder's name
READERS = 4  # files that a process sums at once
RACY_NS = 2_000_000_000  # the coarsest clock of a file system: two writes within it can look like one

Say = Callable[[str], Any]


class _Step(ocp.path.step.Metadata):
    @property
    def commit_timestamp(self) -> datetime.datetime:  # orbax's reads a file, and fails where that is damaged
        return datetime.datetime.fromtimestamp(self.path.stat().mtime, datetime.UTC)


class _Steps(ocp.path.step.NameFormat[ocp.path.step.Metadata]):
    """Which folders are checkpoints, for orbax too: committed ones with a step's name that are not empty."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[ocp.path.step.Metadata]:
        base = epath.Path(base_path)
        for path in base.iterdir() if base.is_dir() else ():
            if re.fullmatch(STEP, path.name) and ocp.path.step.is_path_finalized(path) and any(path.iterdir()):
                yield _Step(int(path.name), path)

    def find_step(self, base_path: epath.PathLike, step: int) -> ocp.path.step.Metadata:
        return _Step(step, epath.Path(base_path) / self.build_name(step))


class _Summed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint's folder until it is committed: its checksums are in it before it is renamed to its step."""

    async def finalize(self) -> None:
        store, folder = self._checkpoint_metadata_store, self.get()
        if store is None:  # not a step's folder but that of an item in it
            return await super().finalize()
        # What orbax does, and the checksums between its last write and its rename, where it has no hook.
        file = ocp.path.atomicity.checkpoint_metadata.step_metadata_file_path(folder)
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(store.update, file_path=file, commit_timestamp_nsecs=time.time_ns())
        await asyncio.to_thread(store.wait_until_finished)
        (folder / ocp.path.atomicity.COMMIT_SUCCESS_FILE).write_text(f"committed as {self.get_final()}")
        await asyncio.to_thread(_write_sums, folder)
        await asyncio.to_thread(folder.rename, self.get_final())


class Checkpoints(ocp.CheckpointManager):
    """orbax's manager, but it opens whatever has happened to the files, and knows which steps it has verified."""

    def __init__(self, *args: Any, **keys: Any):
        self.verified: set[int] = set()
        super().__init__(*args, **keys)

    def metrics(self, step: int) -> Any:
        """Returns the metrics saved with a step, {name: number}, or None: none were, or they cannot be read."""
        try:
            found: Any = super().metrics(step)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found, dict) and all(isinstance(x, int | float) for x in found.values()) else None


def manager(
    workdir: str | Path,
    *,
    keep: int | None = None,
    best: str | None = None,
    keep_best: int = 1,
    only: Mapping[str, float] = FrozenDict({}),
) -> Checkpoints:
    """Returns the manager of a workdir's checkpoints.

    Args:
      workdir: local directory or any path orbax takes (gs://...).
      keep: how many of the latest to keep; None keeps all.
      best: name of a metric, smaller is better: its best `keep_best` are kept besides the latest.
      only: metrics that a checkpoint must have so to be among the best, {} for any: {MEASURED_ON: ...}.
    """

    def score(metrics: Any) -> float:
        return metrics.get(best, math.inf) if all(metrics.get(key) == only[key] for key in only) else math.inf

    preservation: Any = ocp.checkpoint_managers.LatestN(n=keep)
    if best is not None:
        top = ocp.checkpoint_managers.BestN(
            get_metric_fn=score, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
        )
        preservation = ocp.checkpoint_managers.AnyPreservationPolicy([preservation, top])
    directory = str(workdir).rstrip("/") + "/" + FOLDER
    remote = "://" in directory
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation,
        best_fn=None if best is None else score,
        best_mode="min",
        save_interval_steps=1,
        enable_async_checkpointing=True,
        step_name_format=_Steps(),
        temporary_path_class=None if remote else _Summed,
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    directory = directory if remote else str(Path(directory).absolute())
    return Checkpoints(directory, item_handlers=handlers, options=options)


def save(checkpoints: Checkpoints, step: int, state: Any, about: dict, metrics: dict | None = None) -> None:
    """Starts saving `state` (arrays) and `about` (JSON) as the checkpoint of `step`; returns before it is written."""
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about))
    checkpoints.verified.discard(step)
    checkpoints.save(step, args=args, metrics=metrics, force=True)


def restore(checkpoints: Checkpoints, step: int, like: Any) -> Any:
    """Returns the state of a checkpoint, or the part that `like` names, each array placed and cast as it says.

    It is verified first, unless this manager has done so already; files are read for it once in a process.

    Args:
      like: pytree of ShapeDtypeStructs with shardings; {"params": ...} alone leaves the rest unread.

    Raises:
      ConfigError: the checkpoint is damaged or not ours, or the saved tree differs; the message names the file, or
        lists what is missing, extra or of another shape.
    """
    partial = isinstance(like, dict)
    saved = saved_tree(checkpoints, step)
    with _reading(checkpoints, step):
        difference = compare_trees({k: saved[k] for k in like if k in saved} if partial else saved, like)
    if difference:
        raise ConfigError(
            f"checkpoint {step} in {checkpoints.directory} is of another model:\n" + "\n".join(difference)
        )
    how = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=partial))
    with _reading(checkpoints, step):
        return checkpoints.restore(step, args=args)["state"]


def saved_tree(checkpoints: Checkpoints, step: int) -> Any:
    """Returns the shapes and dtypes of what a checkpoint holds, once it is verified.

    Raises:
      ConfigError: it is damaged, or not one of ours.
    """
    _verify(checkpoints, step)
    with _reading(checkpoints, step):
        return checkpoints.item_metadata(step)["state"].tree


def compare_trees(saved: Any, wanted: Any) -> list[str]:
    """Returns one line for each difference between two trees of things with shapes: missing, extra, wrong shape."""
    have, want = paths(saved), paths(wanted)
    lines = [f"  missing: {p} {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"  extra:   {p} {tuple(have[p].shape)}" for p in have if p not in want]
    lines += [
        f"  shape:   {p} is {tuple(have[p].shape)}, wanted {tuple(want[p].shape)}"
        for p in want
        if p in have and tuple(have[p].shape) != tuple(want[p].shape)
    ]
    return lines


def is_workdir(path: str | Path) -> bool:
    """Returns whether a path is a workdir with checkpoints of ours."""
    return (Path(path) / FOLDER).is_dir()


def read_about(checkpoints: Checkpoints, step: int) -> dict:
    """Returns a checkpoint's JSON: its data position and the resolved config.

    Raises:
      ConfigError: it is damaged, or not there. The arrays are not verified for it.
    """
    _verify(checkpoints, step, "about/")
    with _reading(checkpoints, step):
        about = checkpoints.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        return dict(about.items())


def _verify(checkpoints: Checkpoints, step: int, under: str = "") -> None:
    if step in checkpoints.verified:
        return
    bad = _damage(checkpoints, step, under) if under else damage(checkpoints, step)
    if bad is not None:
        raise ConfigError(f"checkpoint {step} in {checkpoints.directory} is damaged: {bad}.")


@contextlib.contextmanager
def _reading(checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Says in whose files it was that orbax, which names neither step nor file, has failed."""
    try:
        yield
    except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).split(chr(10))[0][:200]}"
        raise ConfigError(f"checkpoint {step} in {checkpoints.directory} cannot be read ({what}).") from error


# Which checkpoint


def steps(checkpoints: Checkpoints) -> list[int]:
    """Returns the steps whose checkpoints are written to their end, in order, whether they verify or not.

    What else lies in the folder is left out: files, other names, empty folders, what a kill has left half written.
    """
    here = sorted(found.step for found in _Steps().find_all(checkpoints.directory))
    return json.loads(_gather(json.dumps(here))[0])


def latest_good(checkpoints: Checkpoints, say: Say = warnings.warn) -> int | None:
    """Returns the newest step that is not damaged, or None; through `say`, names each newer one and what it has."""
    bad: dict[int, str] = {}
    good = None
    for step in reversed(steps(checkpoints)):
        what = damage(checkpoints, step)
        if what is None:
            good = step
            break
        bad[step] = what
    rest = "no other one is left" if good is None else f"going on from {good}"
    for step, what in bad.items():
        say(f"{checkpoints.directory.parent}: checkpoint {step} is damaged ({what}): {rest}")
    _say_unverified(checkpoints, good, say)
    return good


def find_step(checkpoints: Checkpoints, which: str | int | None = None, say: Say = warnings.warn) -> int:
    """Returns the step of the checkpoint that is asked for, verified.

    Args:
      which: None or "" for the newest undamaged one; a step, as a number or as text; "best" for the one of the smallest
        eval_loss, among the undamaged ones that were saved with it and measured on the data that the newest was.
      say: is told of damaged checkpoints that are passed over, and of an unverified one.

    Raises:
      ConfigError: there is none; or the step that was asked for is absent or damaged, naming what could be had.
    """
    where, there = checkpoints.directory.parent, steps(checkpoints)
    if not there:
        raise ConfigError(f"{where}: holds no checkpoint.")
    if which in (None, ""):
        step = latest_good(checkpoints, say)
        if step is None:
            what = damage(checkpoints, there[-1])
            raise ConfigError(f"{where}: all of its checkpoints are damaged: {_listed(there)}; of the newest, {what}.")
        return step
    if which == "best":
        step = _best(checkpoints, there, say)
    elif isinstance(which, int) or re.fullmatch(r"[0-9]{1,18}", which):
        step = int(which)
        if step not in there:
            raise ConfigError(f"{where}: holds no checkpoint {step}; there are {_listed(there)}.")
        bad = damage(checkpoints, step)
        if bad is not None:
            near = sorted((other for other in there if other != step), key=lambda other: (abs(other - step), other))
            good = next((other for other in near if damage(checkpoints, other) is None), None)
            rest = "no other one is good" if good is None else f"the nearest good one is {good}"
            raise ConfigError(f"{where}: checkpoint {step} is damaged ({bad}); {rest}.")
    else:
        raise ConfigError(f'{where}: got {which!r} for a checkpoint; allowed: {_listed(there)}, "best".')
    _say_unverified(checkpoints, step, say)
    return step


def best_loss(checkpoints: Checkpoints, only: Mapping[str, float]) -> float:
    """Returns the smallest eval_loss of the checkpoints that have the metrics `only` too; infinity if there is none."""
    found = [checkpoints.metrics(step) or {} for step in steps(checkpoints)]
    losses = [x[METRIC] for x in found if METRIC in x and all(x.get(key) == value for key, value in only.items())]
    return json.loads(_gather(json.dumps(min(filter(math.isfinite, losses), default=math.inf)))[0])


def _best(checkpoints: Checkpoints, there: list[int], say: Say) -> int:
    losses: dict[int, tuple[float, Any]] = {}
    for step in there:
        bad = _damage(checkpoints, step, "metrics/")
        if bad is not None:
            say(f"{checkpoints.directory.parent}: checkpoint {step} is damaged ({bad}): not asked whether it is best")
            continue
        found = checkpoints.metrics(step) or {}
        loss = found.get(METRIC)
        if loss is not None and math.isfinite(loss):
            losses[step] = loss, found.get(MEASURED_ON)
    data = losses[max(losses)][1] if losses else None
    for step in [step for step in losses if losses[step][1] != data]:
        del losses[step]
    for step in sorted(losses, key=lambda step: (losses[step][0], -step)):
        bad = damage(checkpoints, step)
        if bad is None:
            return step
        say(f"{checkpoints.directory.parent}: checkpoint {step}, the best, is damaged ({bad}): taking the next best")
    raise ConfigError(
        f"{checkpoints.directory.parent}: no good checkpoint of it was saved with {METRIC}, by which one is the best; "
        "a run saves it where its config has eval_data. "
        f"There are {_listed(there)}."
    )


def _listed(there: list[int]) -> str:
    shown = there if len(there) <= 12 else [*there[:3], "...", *there[-8:]]
    return ", ".join(map(str, shown))


def _say_unverified(checkpoints: Checkpoints, step: int | None, say: Say) -> None:
    if step is not None and not (checkpoints.directory / str(step) / SUMS).exists():
        say(f"{checkpoints.directory.parent}: checkpoint {step} has no {SUMS} to verify it by: used as it is")


def set_aside(checkpoints: Checkpoints, step: int) -> str:
    """Moves the checkpoint of a step to workdir/damaged/<step>, or <step>.1 and so on, and returns where it is now.

    For a run that goes on from an earlier one: orbax does not save onto a step that is there.
    """
    checkpoints.wait_until_finished()
    to = checkpoints.directory.parent / DAMAGED / str(step)
    if jax.process_index() == 0:
        to.parent.mkdir(parents=True, exist_ok=True)
        taken = 0
        while to.exists():
            taken += 1
            to = to.with_name(f"{step}.{taken}")
        (checkpoints.directory / str(step)).rename(to)
    place = _gather(str(to))[0]  # the others wait here
    checkpoints.verified.discard(step)
    checkpoints.reload()
    return place


def split_source(source: str) -> tuple[str, str]:
    """Returns ("runs/a", "1000") for "runs/a@1000", ("runs/a", "best") for "runs/a@best", else (source, "").

    A path that is there with the @ in its name is that path.

    Raises:
      ConfigError: an empty source.
    """
    if not source.strip():
        raise ConfigError(f"source: got {source!r}, expected a directory, a .gguf file or a packaged model's name.")
    found = re.fullmatch(r"(.+)@([0-9]{1,18}|best)", source, re.DOTALL)
    if found is None or ("://" not in source and Path(source).exists()):
        return source, ""
    return found[1], found[2]


# Checksums


def damage(checkpoints: Checkpoints, step: int) -> str | None:
    """Returns what is wrong with a step's checkpoint, "checkpoints/40/state/d/abc: truncated from 812 to 400 bytes".

    None if each of its files is as it was written; or, where it has no checksums, if orbax can tell what it holds.
    Each process reads its share of the files.
    """
    checkpoints.verified.discard(step)
    bad = _damage(checkpoints, step)
    if bad is None:
        checkpoints.verified.add(step)
    return bad


def _damage(checkpoints: Checkpoints, step: int, under: str = "") -> str | None:
    """Returns what is wrong with the files of a step whose names begin with `under`, the same in every process."""
    folder = checkpoints.directory / str(step)
    try:
        has_sums = (folder / SUMS).exists()
        bad = _differs(folder, under) if has_sums else _looks_wrong(checkpoints, step)
    except OSError as error:
        bad = f"cannot be read ({error.strerror or error})"
    first = next((text for text in _gather(bad or "") if text), None)
    return None if first is None else f"{FOLDER}/{step}{'' if first.startswith('/') else ': '}{first}"


def _looks_wrong(checkpoints: Checkpoints, step: int) -> str | None:
    """Returns what is wrong with a step without checksums, as far as can be told without reading its arrays."""
    folder = checkpoints.directory / str(step)
    if not (folder / "state").is_dir():
        return "not a checkpoint" if folder.exists() else "missing"
    try:
        paths(checkpoints.item_metadata(step)["state"].tree)
    except Exception as error:  # of any kind: orbax finds no word for it
        return f"/state: changed ({error!r})"
    try:
        json.loads((folder / "about" / "metadata").read_text())
    except FileNotFoundError:
        return "/about/metadata: missing"
    except (ValueError, RecursionError) as error:
        return f"/about/metadata: changed ({error})"
    return None


def _differs(folder: epath.Path, under: str) -> str | None:
    """Returns what differs first from the checksums, "/state/d/abc: changed", of this process's share of the files."""
    try:
        raw = (folder / SUMS).read_bytes()
        files = json.loads(raw)["files"]
        whole = raw == _encode(files)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        return f"/{SUMS}: changed"
    mine = sorted(name for name in files if name.startswith(under))[jax.process_index() :: jax.process_count()]

    def check(name: str, compare: Callable[[epath.Path, int, str], str | None]) -> str | None:
        try:
            what = compare(folder / name, *files[name])
        except (FileNotFoundError, NotADirectoryError):
            what = "missing"
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
        return None if what is None else f"/{name}: {what}"

    with ThreadPoolExecutor(READERS) as readers:
        for compare in (_wrong_size, _wrong_sum):  # what is missing is told before anything is read
            found = next(filter(None, readers.map(check, mine, [compare] * len(mine))), None)
            if found is not None:
                readers.shutdown(cancel_futures=True)
                return found
    return None


def _wrong_size(path: epath.Path, size: int, _: str) -> str | None:
    now = path.stat().length
    return None if now == size else f"{'truncated' if now < size else 'grown'} from {size} to {now} bytes"


def _wrong_sum(path: epath.Path, size: int, sha256: str) -> str | None:
    return None if _known_sum(path) == [size, sha256] else "changed"


def _known_sum(path: epath.Path) -> list:
    """Returns the sum of a file, which is read once in a process unless its times or size say that it has changed."""
    status, now = os.stat(path), time.time_ns()
    if max(status.st_mtime_ns, status.st_ctime_ns) > now - RACY_NS:
        return _sum(path)
    return _sum_of(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1 << 14)
def _sum_of(path: str, *state: int) -> list:
    return _sum(epath.Path(path))


def _write_sums(folder: epath.Path) -> None:
    """Writes the checksums of all files of a checkpoint that no one can see yet."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(READERS) as readers:
        sums = readers.map(_sum, files)
        found = {file.relative_to(folder).as_posix(): value for file, value in zip(files, sums, strict=True)}
    (folder / SUMS).write_bytes(_encode(found))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _sum(path: epath.Path) -> list:
    """Returns [bytes, SHA-256 in hexadecimal] of a file."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            size += len(part)
            digest.update(part)  # type: ignore[arg-type]
    return [size, digest.hexdigest()]


def _encode(files: Any) -> bytes:
    """Returns checksums.json: {"files": {name: [bytes, SHA-256]}, "sha256": that of this very list}."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, sort_keys=True).encode()


def _gather(text: str) -> list[str]:
    """Returns the texts of all processes, in their order; with one process nothing is exchanged."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
