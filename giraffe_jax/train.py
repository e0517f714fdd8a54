"""Training: one jitted step and one loop, the same on a laptop and on a pod. What varies is the config.

A run is a workdir: config.json (resolved), tokenizer/, metrics.jsonl, tensorboard/, checkpoints/. Started again in
the same workdir it continues from the last checkpoint bit for bit, since the batch of a step is a pure function of
the config and the step.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from optax import global_norm

from giraffe_jax import checkpoint, hf, sharding
from giraffe_jax.config import ConfigError, build, nearest, to_dict
from giraffe_jax.data.pipeline import DataConfig, make_pipeline
from giraffe_jax.loss import token_nll, weighted_loss
from giraffe_jax.model import PARAM_AXES, Llama, ModelConfig, init_params, unembedding
from giraffe_jax.optim import OptimConfig, learning_rate, optimizer
from giraffe_jax.positions import Encoding
from giraffe_jax.records import TrainLog, read_rows, write_atomically
from giraffe_jax.sharding import MeshConfig
from giraffe_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = "tokenizer"  # a workdir's folder of tokenizer files, so that it can be moved and still be used


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. `source` or a full `model` says what is trained; everything else has a default but the data."""

    data: DataConfig
    steps: int
    source: str = (
        ""  # weights to start from: Hugging Face directory, GGUF file, workdir, "giraffe-mini"; "" starts anew
    )
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # ModelConfig, or what differs from the source's
    tokenizer: str = ""  # path; "" takes the source's
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1  # micro-batches to a step
    z_loss: float = 0.0
    loss_chunk: int = 1024  # tokens of a row whose logits exist at once
    seed: int = 0
    save_every: int = 500  # steps; the last step is always saved
    keep: int = 2  # latest checkpoints kept
    eval_data: DataConfig | None = None  # held-out data for eval_loss, by which the best checkpoint is kept too
    eval_every: int = 500
    eval_batches: int = 8

    def __post_init__(self):
        for name in ("steps", "accumulate", "loss_chunk", "save_every", "keep", "eval_every", "eval_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.{name} must be at least 1, got {getattr(self, name)}.")
        if self.data.batch_size % self.accumulate:
            raise ConfigError(f"config.accumulate {self.accumulate} does not divide batch_size {self.data.batch_size}.")


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "opt_state", "step", "key"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes, and the key that its randomness is folded from."""

    params: Any
    opt_state: Any
    step: Any  # int32 [], steps done
    key: Any  # raw PRNG key data, uint32 [2]; leaves are arrays, or their shapes or shardings


def init_state(params: Any, config: TrainConfig) -> TrainState:
    """Returns the state before the first step."""
    opt_state = optimizer(config.optim, config.steps).init(params)
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(config.seed)))


@functools.partial(
    jax.jit, static_argnames=("model", "optim", "steps", "accumulate", "z_loss", "chunk"), donate_argnums=0
)
def train_step(
    state: TrainState,
    batch: Mapping[str, Array],
    encoding: Encoding,
    *,
    model: ModelConfig,
    optim: OptimConfig,
    steps: int,
    accumulate: int = 1,
    z_loss: float = 0.0,
    chunk: int = 1024,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns the state after one step, and its metrics: loss (nats per token, before the update), grad_norm, lr,
    tokens.

    Args:
      batch: tokens, targets, weights, positions, segments, [B T] each; split into `accumulate` micro-batches.
      encoding: bound positions; its numbers are arguments, so methods that differ in numbers share one compilation.
      model: architecture; its own `positions` are not read.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    total_weight = jnp.maximum(batch["weights"].sum(), 1.0)

    def loss_fn(params, part, key):
        e = encoding.at(part["positions"], key=key)
        hidden, _ = Llama(model).apply({"params": params}, part["tokens"], e, part["segments"])
        nll, norm, _ = token_nll(hidden, unembedding(params), part["targets"], chunk=chunk)
        nats = jnp.sum(part["weights"] * nll) / total_weight
        return weighted_loss(nll, norm, part["weights"], z_loss=z_loss) / total_weight, nats

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (_, loss), grads = grad_fn(state.params, batch, key)
    else:
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

        def add(carry, part_and_key):
            (_, nats), grads = grad_fn(state.params, *part_and_key)
            return jax.tree.map(jnp.add, carry, (nats, grads)), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        (loss, grads), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulate)))
    updates, opt_state = optimizer(optim, steps).update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
    lr = jnp.asarray(learning_rate(optim, steps)(state.step), jnp.float32)
    metrics = {"loss": loss, "grad_norm": global_norm(grads), "lr": lr, "tokens": batch["weights"].sum()}
    return TrainState(params, opt_state, state.step + 1, state.key), metrics


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def eval_step(params: Any, batch: Mapping[str, Array], encoding: Encoding, *, model: ModelConfig, chunk: int = 1024):
    """Returns (sum of weighted nll, sum of weights) of a batch."""
    e = encoding.at(batch["positions"])
    hidden, _ = Llama(model).apply({"params": params}, batch["tokens"], e, batch["segments"])
    nll, _, _ = token_nll(hidden, unembedding(params), batch["targets"], chunk=chunk)
    return jnp.sum(batch["weights"] * nll), batch["weights"].sum()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights with what is needed to use them."""

    model: ModelConfig
    params: Any
    tokenizer: Tokenizer


def load(source: str, overrides: Mapping[str, Any] = {}, *, tokenizer: str = "", step: int | None = None) -> Loaded:
    """Returns the weights of any source: Hugging Face directory, GGUF file, packaged name, or a workdir of ours.

    Args:
      source: where; see TrainConfig.source.
      overrides: ModelConfig keys that replace the source's (positions, dtype, attention...).
      tokenizer: path of another tokenizer; "" takes the source's.
      step: which checkpoint of a workdir; None takes the latest.
    """
    if checkpoint.is_workdir(source):
        return _load_workdir(source, overrides, tokenizer, step)
    found = hf.load(source)
    words = load_tokenizer(tokenizer) if tokenizer else found.tokenizer
    if words is None:
        raise ConfigError(f"source: {source} has no tokenizer.json or tokenizer.model; name one with config.tokenizer.")
    model = override(found.config, overrides)
    dtype = jnp.dtype(model.param_dtype)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), found.params)
    return Loaded(model, params, words)


def _load_workdir(source: str, overrides: Mapping[str, Any], tokenizer: str, step: int | None) -> Loaded:
    checkpoints = checkpoint.manager(source)
    step = checkpoints.latest_step() if step is None else step
    if step is None or step not in checkpoints.all_steps():
        raise ConfigError(f"source: {source} holds no checkpoint{'' if step is None else f' {step}'} to start from.")
    about = checkpoint.read_about(checkpoints, step)
    model = override(build(ModelConfig, about["model"], "model"), overrides)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), shapes)
    params = checkpoint.restore(checkpoints, step, {"params": like})["params"]
    return Loaded(model, params, load_tokenizer(tokenizer or Path(source) / TOKENIZER))


def override(model: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Returns the model config with some keys replaced, checked like any config."""
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    unknown = [k for k in overrides if k not in known]
    if unknown:
        hint = nearest(unknown[0], sorted(known))
        raise ConfigError(f"model: unknown {unknown}; ModelConfig takes {', '.join(sorted(known))}.{hint}")
    return build(ModelConfig, to_dict(model) | {k: overrides[k] for k in overrides}, "model")


def train(config: TrainConfig | Any, workdir: str | Path, *, quiet: bool = False) -> Loaded:
    """Trains to config.steps, continuing what the workdir holds, and returns the result.

    Args:
      config: TrainConfig or the ConfigDict of a config file.
      workdir: where the run lives; local.
      quiet: no progress line.

    Raises:
      ConfigError: a wrong config, a mesh that does not divide, a workdir of another run.
      FloatingPointError: a loss that is not finite, naming the step.
    """
    config = build(TrainConfig, config)
    if "://" in str(workdir):
        raise ConfigError(
            f"--workdir: {workdir} is not a folder of this machine or of a file system that is mounted here."
        )
    mesh = sharding.make_mesh(config.mesh)
    loaded = _start(config)
    share = (jax.process_index(), jax.process_count())
    pipeline = make_pipeline(config.data, loaded.tokenizer, share)
    resolved = to_dict(config) | {"model": to_dict(loaded.model), "data_fingerprint": pipeline.fingerprint}
    claim(Path(workdir), resolved, loaded.tokenizer)
    if config.data.batch_size // config.accumulate % math.prod(mesh.shape[a] for a in ("data", "fsdp")):
        raise ConfigError(
            f"mesh: data x fsdp does not divide a micro-batch of {config.data.batch_size // config.accumulate}."
        )

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        best = "eval_loss" if config.eval_data is not None else None
        checkpoints = stack.enter_context(checkpoint.manager(workdir, keep=config.keep, best=best))
        state = place(config, loaded, mesh)
        if checkpoints.latest_step() is not None:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            state = checkpoint.restore(checkpoints, checkpoints.latest_step(), like)
        shown = io.StringIO() if quiet else None
        process, start = jax.process_index(), int(state.step)
        log = stack.enter_context(TrainLog(workdir, total_steps=config.steps, start=start, process=process, file=shown))
        about = {"model": resolved["model"], "data": pipeline.fingerprint}
        state = _loop(config, loaded, mesh, state, pipeline, checkpoints, log, about)
        checkpoints.wait_until_finished()
    return dataclasses.replace(loaded, params=state.params)


def _start(config: TrainConfig) -> Loaded:
    """Returns the source's weights, or a fresh model."""
    if config.source:
        return load(config.source, config.model, tokenizer=config.tokenizer)
    if not config.tokenizer:
        raise ConfigError("config.tokenizer: a run without a source needs a tokenizer's path.")
    model = build(ModelConfig, config.model, "model")
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(f"model.vocab_size {model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}.")
    return Loaded(model, None, tokenizer)


def place(config: TrainConfig, loaded: Loaded, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the state before the first step, every array on the mesh by PARAM_AXES."""

    def fresh(params):
        return init_state(params, config)

    if loaded.params is None:
        start = functools.partial(init_params, loaded.model)
        shapes = jax.eval_shape(lambda key: fresh(start(key)), jax.random.key(config.seed))
        where = sharding.shardings(shapes, PARAM_AXES, mesh)
        return jax.jit(lambda key: fresh(start(key)), out_shardings=where)(jax.random.key(config.seed))
    shapes = jax.eval_shape(fresh, loaded.params)
    where = sharding.shardings(shapes, PARAM_AXES, mesh)
    params = jax.device_put(loaded.params, where.params)
    # A copy: the step donates its state, and the caller may still hold the loaded weights.
    return jax.jit(lambda p: fresh(jax.tree.map(jnp.copy, p)), out_shardings=where)(params)


def claim(workdir: Path, resolved: dict, tokenizer: Tokenizer) -> None:
    """Writes config.json and the tokenizer into a new workdir, or checks that the one there is of this run.

    Raises:
      ConfigError: the workdir holds another run; names the first key that differs.
    """
    file = workdir / "config.json"
    resolved = json.loads(json.dumps(resolved))
    if file.is_file():
        try:
            there = json.loads(file.read_text())
        except ValueError as e:
            raise ConfigError(f"--workdir: {file} is not JSON: {e}.") from e
        for key, (old, new) in sorted(_differences(there, resolved).items()):
            raise ConfigError(
                f"--workdir: {workdir} holds another run: {key} was {old!r}, now {new!r}. Choose a new one."
            )
        return
    if (workdir / checkpoint.FOLDER).exists():
        raise ConfigError(f"--workdir: {workdir} has checkpoints but no config.json: not a run that can be continued.")
    for name, content in tokenizer.files().items():
        write_atomically(workdir / TOKENIZER / name, content)
    write_atomically(file, json.dumps(resolved, indent=2) + "\n")


def _differences(old: Any, new: Any, where: str = "config") -> dict[str, tuple]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= _differences(old.get(key), new.get(key), f"{where}.{key}")
        return found
    return {} if old == new else {where: (old, new)}


def _loop(config: TrainConfig, loaded: Loaded, mesh, state: TrainState, pipeline, checkpoints, log: TrainLog, about):
    encoding = loaded.model.bind()
    model = dataclasses.replace(loaded.model, positions=())
    settings = dict(model=model, optim=config.optim, steps=config.steps, accumulate=config.accumulate)
    settings |= dict(z_loss=config.z_loss, chunk=config.loss_chunk)
    share = (jax.process_index(), jax.process_count())
    held_out = None if config.eval_data is None else make_pipeline(config.eval_data, loaded.tokenizer, share)
    first = int(state.step)
    waiting: tuple[int, dict] | None = None  # metrics of the step in flight, read once the next one is dispatched
    began = time.perf_counter()

    def write(step: int, metrics: dict) -> None:
        nonlocal began
        row = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"step {step}: loss is {row['loss']}. Last good checkpoint: {checkpoints.latest_step()}."
            )
        now = time.perf_counter()
        row["tokens_per_second"], began = row["tokens"] / (now - began), now
        log.write(step, row)

    for step, batch in zip(range(first, config.steps), pipeline.iterate(first), strict=False):
        state, metrics = train_step(state, to_global(batch, mesh), encoding, **settings)
        if waiting is not None:
            write(*waiting)
        waiting = (step + 1, metrics)
        done = step + 1
        evaluate = held_out is not None and (done % config.eval_every == 0 or done == config.steps)
        save = done % config.save_every == 0 or done == config.steps
        if not (evaluate or save):
            continue
        write(*waiting)
        waiting = None
        scores = None
        if evaluate:
            scores = {"eval_loss": _held_out_loss(config, model, state, held_out, encoding, mesh)}
            log.write(done, scores)
        if save:
            checkpoint.save(checkpoints, done, state, about | {"next_step": done}, scores)
    return state


def _held_out_loss(config: TrainConfig, model: ModelConfig, state: TrainState, pipeline, encoding, mesh) -> float:
    total = weight = 0.0
    for i in range(config.eval_batches):
        batch = to_global(pipeline.batch(i), mesh)
        nats, tokens = eval_step(state.params, batch, encoding, model=model, chunk=config.loss_chunk)
        total, weight = total + float(nats), weight + float(tokens)
    return total / max(weight, 1.0)


def to_global(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Array]:
    """Returns the global sharded batch of which each process holds its own rows."""
    where = sharding.batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(where, rows) for name, rows in batch.items()}


def losses(workdir: str | Path) -> Iterator[tuple[int, float]]:
    """Returns (step, loss) of every training step a workdir has recorded."""
    for row in read_rows(Path(workdir) / "metrics.jsonl"):
        if "loss" in row:
            yield row["step"], row["loss"]
