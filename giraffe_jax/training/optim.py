"""Optimisers: a config, its learning-rate schedule, and the optax chain made of both."""

import dataclasses
from collections.abc import Hashable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from giraffe_jax.config import Bound, ConfigError, check_fields

Rate = Annotated[float, Bound(0.0, above=True)]
NonNegative = Annotated[float, Bound(0.0)]
Decay = Annotated[float, Bound(0.0, high=0.999999)]  # of a moment


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and clipping. The defaults are those of position interpolation (arXiv:2306.15595).

    With `muon_lr`, kernels are moved by Muon instead (Jordan et al., 2024; optax.contrib), which trains small models
    from scratch in far fewer steps; norms and embeddings stay with AdamW, with Nesterov momentum.
    """

    lr: Rate = 2e-5  # peak learning rate
    muon_lr: Rate | None = None  # peak learning rate of kernels under Muon; follows the same schedule
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after warm-up, down to final_lr at the last step
    # Steps of that descent, at the peak until then; None is all after the warm-up.
    decay_steps: Annotated[int, Bound(1)] | None = None
    warmup_steps: Annotated[int, Bound(0)] = 20
    final_lr: NonNegative = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0  # of matrices; norms and embeddings are never decayed
    clip: Rate | None = 1.0  # largest global norm of the gradient
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of first moments; second moments are float32 always

    def __post_init__(self):
        check_fields(self, "optim")
        if self.decay_steps is not None and self.schedule == "constant":
            raise ConfigError(
                f"optim.decay_steps: got {self.decay_steps} with schedule='constant'; it takes 'cosine' or 'linear'."
            )


@dataclasses.dataclass(frozen=True)
class FrequencyConfig:
    """Frequencies as parameters of a fine-tune: those of the run's positions, times exp(log_ratio_i) in plane i.

    log_ratio starts at 0, [head_dim / 2], one table for all layers. No weights move with "alone".
    """

    train: Literal["alone", "with_weights"]
    lr: Rate | None = None  # peak rate of log_ratio with weights; follows their schedule; None takes optim.lr
    regularise: NonNegative = 0.0  # adds regularise * mean(log_ratio^2) to the loss: how hard to hold on to the start

    def __post_init__(self):
        check_fields(self, "frequencies")
        if self.lr is not None and self.train == "alone":
            raise ConfigError(
                f"frequencies.lr: got {self.lr} with train='alone'; it is a rate beside that of weights "
                "(train='with_weights'), and alone frequencies move by optim.lr."
            )


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of each step: linear warm-up, the peak, and the descent in the last `decay_steps`."""
    rest = max(steps - config.warmup_steps, 1)
    rest = rest if config.decay_steps is None else min(rest, config.decay_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.lr, config.final_lr, rest)
    else:
        after = optax.constant_schedule(config.lr)
    # Step 0 already moves: warm-up starts from lr / warmup_steps, not from zero.
    start = config.lr / max(config.warmup_steps, 1)
    warmup = optax.linear_schedule(start, config.lr, max(config.warmup_steps - 1, 1))
    peak = optax.constant_schedule(config.lr)
    joined = optax.join_schedules([warmup, peak, after], [config.warmup_steps, max(steps - rest, config.warmup_steps)])
    return lambda step: joined(jnp.asarray(step, jnp.float32))


def decay_mask(params: Any) -> Any:
    """Returns True for the parameters that weight decay applies to: kernels and their adapters."""

    def is_matrix(path, _):
        return path[-1].key == "kernel" or (len(path) > 1 and path[-2].key == "lora")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def optimizer(
    config: OptimConfig, steps: int, frequencies: FrequencyConfig | None = None
) -> optax.GradientTransformation:
    """Returns the optax chain of what moves: clip, then AdamW, or Muon for kernels and AdamW for the rest.

    Frequencies beside weights have a chain of their own, with their own rate and norm to clip.
    """
    if frequencies is not None and frequencies.train == "with_weights":
        lr = frequencies.lr or config.lr
        own = dataclasses.replace(config, lr=lr, final_lr=config.final_lr * lr / config.lr, muon_lr=None)
        chains: dict[Hashable, Any] = {"weights": optimizer(config, steps), "positions": optimizer(own, steps)}
        return optax.partition(chains, lambda params: {k: k if k == "positions" else "weights" for k in params})
    lr = learning_rate(config, steps)
    if config.muon_lr is None:
        moves = optax.adamw(
            lr,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            mu_dtype=config.mu_dtype,
        )
    else:
        ratio = config.muon_lr / config.lr
        moves = contrib.muon(
            lambda step: ratio * lr(step),
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=lr,
            eps=config.eps,
            muon_weight_dimension_numbers=matrices,
            mu_dtype=config.mu_dtype,
        )
    return _in_float32(moves if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), moves))


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation with float32 arithmetic and state, whatever the dtype of parameters and gradients."""

    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates, state, params=None):
        return tx.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: tx.init(cast(params)), update)


def matrices(params: Any) -> Any:
    """Returns which axes of each kernel are the rows and columns of its matrix, and None for all other parameters.

    Kernels of layers are stacked on axis 0; attention's read [L D N H] and write [L N H D].
    """

    def axes(path, leaf):
        if path[-1].key != "kernel":
            return None
        stacked = int(any(part.key == "layers" for part in path))
        rows = 2 if any(part.key == "o" for part in path) else 1
        every = tuple(range(stacked, leaf.ndim))
        return contrib.MuonDimensionNumbers(reduction_axis=every[:rows], output_axis=every[rows:])

    return jax.tree_util.tree_map_with_path(axes, params)
