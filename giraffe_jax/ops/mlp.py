"""The gated MLP."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax import sharding
from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose
from giraffe_jax.ops.linear import linear
from giraffe_jax.sharding import constrain


def gated(x: Float[Array, "B T D"], weights: Mapping[str, Any], *axes: str | None) -> Float[Array, "B T D"]:
    """Returns down(silu(gate(x)) * up(x)); `axes` are the logical axes of B and T."""
    if choose().mlp == "cpu" and not any("lora" in w for w in weights.values()):
        kernels = (weights[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
        return cpu.gated(x.reshape(-1, x.shape[-1]), *kernels).reshape(x.shape)
    hidden_BTF = nn.silu(linear("btd,df->btf", x, weights["gate"])) * linear("btd,df->btf", x, weights["up"])
    return linear("btf,fd->btd", constrain(hidden_BTF, *axes, "mlp"), weights["down"])


def _gated_in_chunks(x: Float[Array, "B T D"], weights: Mapping[str, Any], chunk: int) -> Float[Array, "B T D"]:
    """Returns `gated` of `chunk` tokens of each device at a time; the backward pass runs each chunk again.

    Each device has its own copy of the weights before the loop: they are gathered once, and their gradients are summed
    over chunks on each device, in float32, and over devices once.
    """
    chunks, restore = sharding.local_chunks(x, chunk)
    copies = jax.tree.map(lambda w: sharding.copies(w.astype(x.dtype), x).astype(jnp.float32), weights)
    each = jax.vmap(jax.vmap(lambda x, w: gated(x, w, None, None)))
    return restore(jax.lax.map(jax.checkpoint(lambda part: each(part, copies)), chunks))
