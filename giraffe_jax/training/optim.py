"""Optimizers: a config, and the optax chain that is made from it.

Schedule and Optimizer are pytrees whose leaves are their numbers (learning rates, decays, ...). The numbers are
arguments of the compiled step, so runs that differ only in numbers share one compilation. A field that is None is not
a leaf: its part is left out of the chain, and its state out of checkpoints.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from giraffe_jax.config import Bound, ConfigError, check_fields

Rate = Annotated[float, Bound(0.0, above=True)]
NonNegative = Annotated[float, Bound(0.0)]
Decay = Annotated[float, Bound(0.0, high=0.999999)]  # of a moment
Number = Any  # a float of the config (cosine: a bool), or its tracer


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and clipping. The defaults are those of position interpolation (arXiv:2306.15595).

    With `muon_lr`, kernels are updated by Muon instead (Jordan et al., 2024; optax.contrib), which trains small models
    from scratch in far fewer steps; norms and embeddings stay with AdamW, with Nesterov momentum.
    """

    lr: Rate = 2e-5  # Peak learning rate.
    # Peak learning rate of kernels, updated by Muon on the same schedule. None updates all parameters by AdamW.
    muon_lr: Rate | None = None
    # Learning rate after the warm-up: constant, or decaying to final_lr, which it would have one step after the last.
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    # Steps of the decay to final_lr, which ends with the run; until then the rate is at its peak. None decays over all
    # steps after the warm-up.
    decay_steps: Annotated[int, Bound(1)] | None = None
    # Steps in which the learning rate rises linearly to its peak; the first step has lr / warmup_steps.
    warmup_steps: Annotated[int, Bound(0)] = 20
    final_lr: NonNegative = 0.0  # Where the learning rate of schedule "cosine" or "linear" ends.
    b1: Decay = 0.9  # Decay of first moments.
    b2: Decay = 0.95  # Decay of second moments.
    eps: NonNegative = 1e-8  # Added to the root of second moments.
    weight_decay: NonNegative = 0.0  # Weight decay of kernels and adapters. Others are never decayed.
    clip: Rate | None = 1.0  # Largest global norm of the gradient. None does not clip.
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # Dtype of first moments. Second moments are float32.

    def __post_init__(self):
        check_fields(self, "optim")
        if self.decay_steps is not None and self.schedule == "constant":
            raise ConfigError(
                f"optim.decay_steps: got {self.decay_steps} with schedule='constant'; it takes 'cosine' or 'linear'."
            )


@dataclasses.dataclass(frozen=True)
class FrequencyConfig:
    """Rotary frequencies as trained parameters: plane i has the frequency of the run's positions times
    exp(log_ratio_i).

    log_ratio has shape [head_dim / 2], starts at 0, and is shared by all layers.
    """

    # "alone" freezes all weights; "with_weights" trains weights and frequencies.
    train: Literal["alone", "with_weights"]
    # Peak learning rate of log_ratio under "with_weights", on the schedule of the weights. None takes optim.lr.
    lr: Rate | None = None
    # Adds regularise * mean(log_ratio^2) to the loss, which keeps frequencies near their initial values.
    regularise: NonNegative = 0.0

    def __post_init__(self):
        check_fields(self, "frequencies")
        if self.lr is not None and self.train == "alone":
            raise ConfigError(
                f"frequencies.lr: got {self.lr} with train='alone'; it takes train='with_weights'. With 'alone' the "
                "learning rate is optim.lr."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step: linear warm-up, the peak, and the decay."""

    peak: Number
    rise: Number  # from the peak to the rate of step 0: negative
    rise_steps: Number  # from step 0 to the peak
    warmup: Number  # steps of the warm-up: one more than rise_steps, or none
    fall: Number  # the peak less the last rate: 0 for a constant schedule
    last: Number
    fall_from: Number  # the last step at the peak, from which it decays
    fall_steps: Number
    cosine: Number  # whether the decay is half a cosine; else it is linear

    def __call__(self, step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        warm = self.rise * (1 - jnp.minimum(step, self.rise_steps) / self.rise_steps) + self.peak
        fallen = jnp.clip(step - self.fall_from, 0, self.fall_steps)
        curve = 0.5 * (1 + jnp.cos(jnp.pi * fallen / self.fall_steps))
        after = self.fall * jnp.where(self.cosine, curve, 1 - fallen / self.fall_steps) + self.last
        return jnp.where(step < self.warmup, warm, jnp.where(step < self.fall_from, self.peak, after))


def learning_rate(config: OptimConfig, steps: int) -> Schedule:
    """Returns the learning rate of each step: linear warm-up, the peak, and the decay in the last `decay_steps`."""
    decay_steps = max(steps - config.warmup_steps, 1)
    decay_steps = decay_steps if config.decay_steps is None else min(decay_steps, config.decay_steps)
    last = config.lr if config.schedule == "constant" else config.final_lr
    return Schedule(
        peak=config.lr,
        # Step 0 already updates: warm-up starts at lr / warmup_steps, not at zero.
        rise=config.lr / max(config.warmup_steps, 1) - config.lr,
        rise_steps=float(max(config.warmup_steps - 1, 1)),
        warmup=float(config.warmup_steps),
        fall=config.lr - last,
        last=last,
        fall_from=float(max(steps - decay_steps, config.warmup_steps)),
        fall_steps=float(decay_steps),
        cosine=config.schedule == "cosine",
    )


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for the parameters that weight decay applies to, kernels and their adapters."""

    def is_matrix(path, _):
        return path[-1].key == "kernel" or (len(path) > 1 and path[-2].key == "lora")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("lr", "muon", "own", "b1", "b2", "eps", "weight_decay", "clip"),
    meta_fields=("mu_dtype",),
)
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The numbers of an optimizer: clip, then AdamW, or Muon for kernels and AdamW for the rest. Leaves are scalars.

    Frequencies that are trained with weights have their own chain: their own learning rate, and a gradient norm of
    their own to clip.
    """

    lr: Schedule
    muon: Number | None  # learning rate of kernels under Muon, as a multiple of lr
    own: Schedule | None  # learning rate of frequencies that are trained with weights
    b1: Number
    b2: Number
    eps: Number
    weight_decay: Number
    clip: Number | None
    mu_dtype: str

    def init(self, params: Any) -> Any:
        """Returns the state before the first step; its structure depends on which fields are None, not on numbers."""
        return self.chain().init(params)

    def update(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Returns (what to add to the parameters, the next state)."""
        return self.chain().update(grads, state, params)

    def chain(self) -> optax.GradientTransformation:
        """Returns the optax chain of these numbers, which may be traced."""
        if self.own is not None:
            weights = dataclasses.replace(self, own=None)
            positions = dataclasses.replace(self, own=None, lr=self.own, muon=None)
            chains: dict[Hashable, Any] = {"weights": weights.chain(), "positions": positions.chain()}
            return optax.partition(chains, lambda params: {k: k if k == "positions" else "weights" for k in params})
        if self.muon is None:
            moves = optax.adamw(
                self.lr,
                b1=self.b1,
                b2=self.b2,
                eps=self.eps,
                weight_decay=self.weight_decay,
                mask=decay_mask,
                mu_dtype=self.mu_dtype,
            )
        else:
            ratio = self.muon
            moves = contrib.muon(
                lambda step: ratio * self.lr(step),
                weight_decay=self.weight_decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_learning_rate=self.lr,
                eps=self.eps,
                muon_weight_dimension_numbers=matrices,
                mu_dtype=self.mu_dtype,
            )
        return _in_float32(moves if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), moves))


def optimizer(config: OptimConfig, steps: int, frequencies: FrequencyConfig | None = None) -> Optimizer:
    """Returns the optimizer of a training of `steps` steps."""
    frequency_lr = None
    if frequencies is not None and frequencies.train == "with_weights":
        lr = frequencies.lr or config.lr
        frequency_lr = learning_rate(
            dataclasses.replace(config, lr=lr, final_lr=config.final_lr * lr / config.lr), steps
        )
    return Optimizer(
        lr=learning_rate(config, steps),
        muon=None if config.muon_lr is None else config.muon_lr / config.lr,
        own=frequency_lr,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        clip=config.clip,
        mu_dtype=config.mu_dtype,
    )


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation with float32 arithmetic and state, whatever the dtype of parameters and gradients."""

    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates, state, params=None):
        return tx.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: tx.init(cast(params)), update)


def matrices(params: Any) -> Any:
    """Returns, for Muon, which axes of each kernel are the rows and columns of its matrix; None for other parameters.

    Kernels of layers are stacked on axis 0; in attention q, k, v are [L D N H] and o is [L N H D].
    """

    def axes(path, leaf):
        if path[-1].key != "kernel":
            return None
        stacked = int(any(part.key == "layers" for part in path))
        rows = 2 if any(part.key == "o" for part in path) else 1
        every = tuple(range(stacked, leaf.ndim))
        return contrib.MuonDimensionNumbers(reduction_axis=every[:rows], output_axis=every[rows:])

    return jax.tree_util.tree_map_with_path(axes, params)
