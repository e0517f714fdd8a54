"""Training: one loop, the same on a laptop and on a pod. What varies is the config.

A run is a workdir: config.json (resolved), tokenizer/, metrics.jsonl, tensorboard/, checkpoints/. Started again in
the same workdir, it resumes from the last checkpoint bit for bit, since the batch of a step is a pure function of
the config and the step.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from giraffe_jax import checkpoint, sharding
from giraffe_jax.base import Base
from giraffe_jax.config import ConfigError, build, to_dict
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.inference import LM
from giraffe_jax.loading import load, override, put
from giraffe_jax.model import ModelConfig, init_params, lora, param_axes
from giraffe_jax.positions import learned_entries
from giraffe_jax.records import TrainLog, read_rows, write_atomically
from giraffe_jax.tokenizer import load_tokenizer
from giraffe_jax.training import header, partial
from giraffe_jax.training.config import TrainConfig, check
from giraffe_jax.training.program import program, start, state_shapes
from giraffe_jax.training.signals import _told_to_end
from giraffe_jax.training.step import TrainState, eval_step
from giraffe_jax.training.workdir import DATA, claim, write_config

POSITIONS = "positions.json"  # in a workdir with trained frequencies: the value of `positions` that reproduces them
# Added to eval_data.seed: with the seed of data, a synthetic source would make the very rows that are trained on.
HELD_OUT_SEED = 2**32


def train(config: TrainConfig | Any, workdir: str | Path, *, quiet: bool = False) -> LM:
    """Trains up to config.steps, resuming the run that the workdir holds, and returns the trained model.

    Args:
      config: TrainConfig or the ConfigDict of a config file.
      workdir: local directory of the run.
      quiet: no progress line.

    Raises:
      ConfigError: a wrong config, a mesh axis that does not divide what it shards, a workdir of another run.
      FloatingPointError: a loss or weights that are not finite, naming the step, the documents that it read, and the
        last good checkpoint.
    """
    config = build(TrainConfig, config)
    if "://" in str(workdir):
        raise ConfigError(
            f"--workdir: {workdir} is not a folder of this machine or of a file system that is mounted here."
        )
    checkpoint.check_path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    under = partial.beneath(config, workdir)
    loaded = _start(config, mesh, under)
    check(config, loaded.config, mesh)
    pipeline = make_pipeline(config.data, loaded.tokenizer, sharding.process_rows(mesh))
    held_out = None
    if config.eval_data is not None:
        drawn_apart = dataclasses.replace(config.eval_data, seed=config.eval_data.seed + HELD_OUT_SEED)
        held_out = make_pipeline(drawn_apart, loaded.tokenizer, sharding.process_rows(mesh))
        _check_weighted(held_out, config.eval_batches)
    resolved = to_dict(config) | {"model": to_dict(loaded.config), DATA: pipeline.fingerprint}
    changed = claim(Path(workdir), resolved, loaded.tokenizer)

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        best = checkpoint.METRIC if held_out is not None else None
        measured_on = _measured_on(config, held_out)
        checkpoints = stack.enter_context(checkpoint.manager(workdir, keep=config.keep, best=best, only=measured_on))
        state = place(config, loaded, mesh)
        loaded = dataclasses.replace(loaded, params=None)  # frees the source's copy: the state has one
        left_out = partial.left_out(config, state.params, under)
        if (good := _last_good(checkpoints)) is not None:
            state = partial.restore(checkpoints, good, state, left_out)
        shown = io.StringIO() if quiet else None
        process, first = jax.process_index(), int(state.step)
        log = stack.enter_context(TrainLog(workdir, total_steps=config.steps, start=first, process=process, file=shown))
        log.say(header.header(config, loaded.config, state.params, mesh, workdir, first))
        if changed:
            log.write(first, {"changed": {key: list(values) for key, values in changed.items()}})
            write_config(Path(workdir), resolved)
        for key, (old, new) in changed.items():
            log.say(f"config.{key}: was {old!r}, from step {first} on {new!r}")
        metadata = {"lora": resolved["lora"], "data": pipeline.fingerprint}
        metadata |= {"base": under.to_json()} if under is not None else {}
        with _naming_the_process(checkpoints):
            state = _loop(config, loaded, mesh, state, pipeline, held_out, checkpoints, log, metadata, left_out)
        checkpoints.wait_until_finished()
        model = learned_model(loaded.config, state.params)
        if config.frequencies is not None:
            text = json.dumps(to_dict(model.positions))
            if process == 0:
                write_atomically(Path(workdir) / POSITIONS, text + "\n")
            if not quiet:
                print(f"learned, for any config: positions = {text}", flush=True)
        params = {name: value for name, value in state.params.items() if name != "positions"}
        params = jax.jit(lora.merge)(params) if config.lora else params
        return dataclasses.replace(loaded, config=model, params=params)


def _last_good(checkpoints: checkpoint.Checkpoints) -> int | None:
    """Returns the step to resume from; moves later, damaged checkpoints aside, since their steps are saved again.

    Raises:
      ConfigError: all checkpoints are damaged. Whether to start over is the user's decision.
    """
    steps = checkpoint.steps(checkpoints)
    if not steps:
        return None
    good = checkpoint.find_step(checkpoints)
    for step in steps:
        if step > good:
            warnings.warn(f"checkpoint {step} is now {checkpoint.set_aside(checkpoints, step)}", stacklevel=2)
    return good


def learned_model(model: ModelConfig, params: Mapping[str, Any]) -> ModelConfig:
    """Returns the model config with the trained frequencies, if there are any, in its `positions`."""
    if "positions" not in params:
        return model
    shape: dict[str, Any] = dict(head_dim=model.head_dim, theta=model.theta, original_len=model.original_len)
    ratio = np.asarray(params["positions"]["log_ratio"])
    entries = learned_entries(model.positions, ratio, **shape, num_layers=model.num_layers)
    return override(model, {"positions": entries})


def _start(config: TrainConfig, mesh: jax.sharding.Mesh, under: Base | None) -> LM:
    """Returns the source's weights on the mesh, or a fresh model."""
    if config.source:
        source, base_source = (config.source, config.base) if under is None else (under.source, under.base)
        settings: dict[str, Any] = dict(base=base_source, adapters=config.lora, tokenizer=config.tokenizer)
        return load(source, config.model, **settings, mesh=mesh)
    if not config.tokenizer:
        raise ConfigError("config.tokenizer: a run without a source needs a tokenizer's path.")
    model = build(ModelConfig, config.model, "model")
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(f"model.vocab_size {model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}.")
    return LM(model, None, tokenizer)


def place(config: TrainConfig, loaded: LM, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the state before the first step, every array sharded over the mesh by its logical axes."""

    shapes = state_shapes(config, loaded.config, mesh, loaded.params)
    where = jax.tree.map(lambda x: x.sharding, shapes)
    fresh = functools.partial(start, config, loaded.config)
    if loaded.params is None:
        key = jax.random.key(config.seed)
        return jax.jit(lambda key: fresh(init_params(loaded.config, key)), out_shardings=where)(key)
    params = jax.tree.map(put, loaded.params, sharding.shardings(loaded.params, param_axes(loaded.config), mesh))
    # A copy: the step donates its state, and the caller may still hold the loaded weights.
    return jax.jit(lambda p: fresh(jax.tree.map(jnp.copy, p)), out_shardings=where)(params)


def _loop(
    config: TrainConfig,
    loaded: LM,
    mesh,
    state: TrainState,
    pipeline,
    held_out,
    checkpoints,
    log: TrainLog,
    metadata,
    left_out,
):
    step_program = program(config, loaded.config, mesh)
    first = int(state.step)
    waiting: tuple[int, dict] | None = None  # metrics of the step in flight, read once the next one is dispatched
    began: float | None = None  # of the step in flight; None for the first one, most of whose time is compilation
    best = checkpoint.best_loss(checkpoints, _measured_on(config, held_out)) if held_out is not None else math.inf

    def write(step: int, metrics: dict) -> None:
        nonlocal began
        row = {name: float(value) for name, value in metrics.items()}
        finite = bool(row.pop("finite"))
        if not (finite and math.isfinite(row["loss"])):
            checkpoints.wait_until_finished()
            good = checkpoints.latest_step()
            cause = "its update made weights that are not finite"
            raise FloatingPointError(
                f"step {step}: loss is {row['loss']}{'' if finite else ', and ' + cause} (gradient norm "
                f"{row['grad_norm']:.3g}, learning rate {row['lr']:.3g}); nothing of it is saved. It read "
                f"{pipeline.describe(step - 1)}. "
                + (f"The last good checkpoint is {good}." if good is not None else "No checkpoint was saved before it.")
            )
        now = time.perf_counter()
        if began is not None and now > began:
            row["tokens_per_second"] = row["tokens"] / (now - began)
        began = now
        log.write(step, row)

    with _told_to_end(log) as signals:
        for step, batch in zip(range(first, config.steps), pipeline.iterate(first), strict=False):
            if step == first:
                for note in pipeline.notes:
                    log.say(note)
                log.say(header.of_data(batch, pipeline.longest, config.data, loaded.config, not config.source))
                if text := header.padding(batch, config.data):
                    log.say(text)
            state, metrics = step_program.step(state, to_global(batch, mesh))
            if waiting is not None:
                write(*waiting)
            waiting = (step + 1, metrics)
            done = step + 1
            evaluate = held_out is not None and (done % config.eval_every == 0 or done == config.steps)
            ending = checkpoints.reached_preemption(done) or bool(signals)
            save = done % config.save_every == 0 or done == config.steps or ending
            if not (evaluate or save):
                continue
            write(*waiting)
            waiting, scores, events = None, None, []
            if evaluate:
                loss = _held_out_loss(config, step_program.model, state, held_out, step_program.encoding, mesh)
                scores, events = {checkpoint.METRIC: loss}, [f"eval_loss {loss:.4f}"]
                log.write(done, scores)
                scores |= _measured_on(config, held_out)
                if loss < best:
                    best, save, events = loss, True, [*events, "the best so far"]
            if save:
                now = {"model": to_dict(learned_model(loaded.config, state.params)), "next_step": done}
                checkpoint.save(checkpoints, done, partial.to_save(state, left_out), metadata | now, scores)
                events.append("saved")
            log.say(f"step {done}: {', '.join(events)}")
            if ending and done < config.steps:
                checkpoints.wait_until_finished()
                raise KeyboardInterrupt(f"told to end: step {done} is saved; the same command resumes from it.")
            began = time.perf_counter()
    return state


@contextlib.contextmanager
def _naming_the_process(checkpoints) -> Iterator[None]:
    """In a job of several processes, turns a failed step into an error that says the likely cause and how to resume."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ConnectionError(
            f"process {jax.process_index()} of {jax.process_count()} has lost another process, whose output gives the "
            f"reason. Restart all of them: they resume from checkpoint {checkpoints.latest_step()}. JAX said: "
            + str(error).split("\n")[0]
        ) from error


def _measured_on(config: TrainConfig, held_out) -> dict[str, int]:
    """Returns a hash of the data that eval_loss is a mean over: only losses with the same hash are compared."""
    if held_out is None:
        return {}
    text = json.dumps([held_out.fingerprint, config.eval_batches])
    return {checkpoint.MEASURED_ON: int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)}


def _check_weighted(held_out, batches: int) -> None:
    """Raises ConfigError if no token of the measured batches counts, as in conversations without answers: the mean
    loss would be 0 / 0."""
    rows = (range(row, row + 1) for row in range(held_out.config.batch_size))
    every = ((step, row) for step, row in itertools.product(range(batches), rows))
    if not any(held_out.batch(step, row)["weights"].any() for step, row in every):
        raise ConfigError(
            f"config.eval_data: no token of its first {batches} batches has a weight in the loss, so eval_loss has no "
            "value. Take conversations with answers, or a weight above 0."
        )


def _held_out_loss(config: TrainConfig, model: ModelConfig, state: TrainState, pipeline, encoding, mesh) -> float:
    total = weight = 0.0
    for i in range(config.eval_batches):
        batch = to_global(pipeline.batch(i), mesh)
        nats, tokens = eval_step(state.params, batch, encoding, model=model, chunk=config.loss_chunk)
        total, weight = total + float(nats), weight + float(tokens)
    return total / weight


def to_global(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Array]:
    """Returns the global, sharded batch [B T]; `batch` has the rows of this process (sharding.process_rows)."""
    where, (index, count) = sharding.batch_sharding(mesh), sharding.process_rows(mesh)

    def whole(rows):
        first, num_rows = index * len(rows), count * len(rows)

        def part(at):
            start, stop, _ = at[0].indices(num_rows)
            return rows[start - first : stop - first, *at[1:]]

        return jax.make_array_from_callback((num_rows, *rows.shape[1:]), where, part)

    return {name: whole(rows) for name, rows in batch.items()}


def losses(workdir: str | Path) -> Iterator[tuple[int, float]]:
    """Yields (step, loss in nats per token) of every training step that a workdir has recorded."""
    for row in read_rows(Path(workdir) / "metrics.jsonl", warnings.warn):
        if "loss" in row:
            yield row["step"], row["loss"]
