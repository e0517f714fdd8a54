"""One training step: its state, and the jitted function that updates it. What varies between runs is an argument."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from giraffe_jax.model import Llama, ModelConfig, lora, unembedding
from giraffe_jax.model.lora import LoraConfig, with_lr_ratio
from giraffe_jax.ops.loss import next_token_loss, token_nll
from giraffe_jax.positions import Encoding, turned
from giraffe_jax.training.optim import FrequencyConfig, Number, OptimConfig, Optimizer, optimizer


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "opt_state", "step", "key"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step updates, and the key into which it folds the step number for its random draws."""

    params: Any
    opt_state: Any
    step: Any  # int32 [], steps done
    key: Any  # raw PRNG key data, uint32 [2]; leaves are arrays, or their shapes or shardings


def trainable(params: Mapping[str, Any], adapters: LoraConfig | None, frequencies: FrequencyConfig | None) -> Any:
    """Returns a tree like params: True for each parameter that is trained."""
    chosen = lora.trainable(params, adapters)
    if frequencies is None:
        return chosen
    alone = frequencies.train == "alone"
    return {
        name: jax.tree.map(lambda yes, name=name: name == "positions" or (yes and not alone), tree)
        for name, tree in chosen.items()
    }


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("optimizer", "lr_ratio", "regularise"),
    meta_fields=("adapters", "frequencies"),
)
@dataclasses.dataclass(frozen=True)
class Update:
    """How a step updates parameters. Its numbers are leaves, arguments of the compiled step; the rest is static."""

    optimizer: Optimizer
    lr_ratio: Number | None  # LoraConfig.lr_ratio, where it is not 1
    regularise: Number | None  # FrequencyConfig.regularise, where frequencies are trained
    adapters: LoraConfig | None  # these two have only what `trainable` reads: a static number would cause recompilation
    frequencies: FrequencyConfig | None

    def chain(self) -> optax.GradientTransformation:
        """Returns the optax chain of the trained parameters."""
        moves = self.optimizer.chain()
        return moves if self.lr_ratio is None else with_lr_ratio(moves, self.lr_ratio)


def make_update(
    optim: OptimConfig,
    steps: int,
    adapters: LoraConfig | None = None,
    frequencies: FrequencyConfig | None = None,
) -> Update:
    """Returns how each step of a run of `steps` steps updates parameters; the arguments are keys of TrainConfig."""
    return Update(
        optimizer=optimizer(optim, steps, frequencies),
        lr_ratio=None if adapters is None or adapters.lr_ratio == 1 else adapters.lr_ratio,
        regularise=None if frequencies is None else frequencies.regularise,
        adapters=None if adapters is None else LoraConfig(train=adapters.train),
        frequencies=None if frequencies is None else FrequencyConfig(train=frequencies.train),
    )


def init_state(params: Any, config: Any) -> TrainState:
    """Returns the state before the first step. config: reads TrainConfig's optim, steps, lora, frequencies, seed."""
    moving, _ = lora.split(params, trainable(params, config.lora, config.frequencies))
    opt_state = make_update(config.optim, config.steps, config.lora, config.frequencies).chain().init(moving)
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(config.seed)))


@functools.partial(jax.jit, static_argnames=("model", "accumulate", "chunk"), donate_argnums=0)
def train_step(
    state: TrainState,
    batch: Mapping[str, Array],
    encoding: Encoding,
    update: Update,
    *,
    model: ModelConfig,
    accumulate: int = 1,
    z_loss: Number = 0.0,
    chunk: int = 1024,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns the state after one step, and its metrics: loss (nats per token, before the update), grad_norm, lr,
    tokens (of the batch, without padding), finite (whether all updated weights are finite).

    Args:
      batch: tokens, targets, weights, positions, segments, [B T] each; split into `accumulate` micro-batches.
      encoding: bound positions; its numbers are arguments, so methods that differ in numbers share one compilation.
      update: from `make_update`; runs that differ only in its numbers share one compilation too. Frozen parameters
        have neither gradient nor optimizer state.
      model: architecture; its own `positions` are not read.
    """
    moving, frozen = lora.split(state.params, trainable(state.params, update.adapters, update.frequencies))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    total_weight = batch["weights"].sum()
    total_weight = jnp.where(total_weight > 0, total_weight, 1.0)  # without a weighted token the loss is 0

    def loss_fn(moving, part, key):
        params = lora.join(moving, frozen)
        e = turned(encoding.at(part["positions"], key=key), params)
        hidden, _ = Llama(model).apply({"params": params}, part["tokens"], e, part["segments"])
        weights = part["weights"] / total_weight
        loss, nats = next_token_loss(hidden, unembedding(params), part["targets"], weights, z_loss=z_loss, chunk=chunk)
        if update.regularise is not None:
            loss += update.regularise * jnp.mean(params["positions"]["log_ratio"] ** 2) / accumulate
        return loss, nats

    def grad_fn(*args):
        with model.at_precision():
            return jax.value_and_grad(loss_fn, has_aux=True)(*args)

    if accumulate == 1:
        (_, loss), grads = grad_fn(moving, batch, key)
    else:
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

        def add(carry, part_and_key):
            (_, nats), grads = grad_fn(moving, *part_and_key)
            return jax.tree.map(jnp.add, carry, (nats, grads)), None

        zeros = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), moving))
        (loss, grads), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulate)))
    with model.at_precision():  # Muon does matmuls
        updates, opt_state = update.chain().update(grads, state.opt_state, moving)
    updated = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), moving, updates)
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in jax.tree.leaves(updated)])
    lr = update.optimizer.lr(state.step)
    tokens = (batch["segments"] > 0).sum().astype(jnp.float32)
    metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), "lr": lr, "tokens": tokens}
    metrics["finite"] = finite
    return TrainState(lora.join(updated, frozen), opt_state, state.step + 1, state.key), metrics


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def eval_step(params: Any, batch: Mapping[str, Array], encoding: Encoding, *, model: ModelConfig, chunk: int = 1024):
    """Returns (sum of weighted nll in nats, sum of weights) of a batch; arguments as for `train_step`."""
    e = turned(encoding.at(batch["positions"]), params)
    with model.at_precision():
        hidden, _ = Llama(model).apply({"params": params}, batch["tokens"], e, batch["segments"])
        nll, _, _ = token_nll(hidden, unembedding(params), batch["targets"], chunk=chunk)
    return jnp.sum(batch["weights"] * nll), batch["weights"].sum()
