"""Optimisers: a config, its learning-rate schedule, and the optax chain made of both."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from giraffe_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and clipping. The defaults are those of position interpolation (arXiv:2306.15595)."""

    lr: float = 2e-5  # peak learning rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after warm-up, down to final_lr at the last step
    warmup_steps: int = 20
    final_lr: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices; norms and embeddings are never decayed
    clip: float | None = 1.0  # largest global norm of the gradient

    def __post_init__(self):
        if self.lr <= 0 or self.warmup_steps < 0:
            raise ConfigError(f"optim: lr must be > 0 and warmup_steps >= 0, got {self.lr} and {self.warmup_steps}.")


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of each step: linear warm-up, then the schedule over what remains of `steps`."""
    rest = max(steps - config.warmup_steps, 1)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.lr, config.final_lr, rest)
    else:
        after = optax.constant_schedule(config.lr)
    # Step 0 already moves: warm-up starts from lr / warmup_steps, not from zero.
    start = config.lr / max(config.warmup_steps, 1)
    warmup = optax.linear_schedule(start, config.lr, max(config.warmup_steps - 1, 1))
    joined = optax.join_schedules([warmup, after], [config.warmup_steps])
    return lambda step: joined(jnp.asarray(step, jnp.float32))


def decay_mask(params: Any) -> Any:
    """Returns True for the parameters that weight decay applies to: kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optax chain: clip, Adam, decoupled weight decay, learning rate."""
    adam = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.float32,
    )
    return adam if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adam)
