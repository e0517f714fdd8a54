"""The gated MLP."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax import sharding
from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose
from giraffe_jax.ops.linear import cast, linear
from giraffe_jax.sharding import constrain


def gated(x: Float[Array, "B T D"], weights: Mapping[str, Any], *axes: str | None) -> Float[Array, "B T D"]:
    """Returns down(silu(gate(x)) * up(x)); `axes` are the logical axes of B and T."""
    if choose().mlp == "cpu" and not any("lora" in w for w in weights.values()):
        kernels = (weights[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
        return cpu.gated(x.reshape(-1, x.shape[-1]), *kernels).reshape(x.shape)
    hidden_BTF = nn.silu(linear("btd,df->btf", x, weights["gate"])) * linear("btd,df->btf", x, weights["up"])
    return linear("btf,fd->btd", constrain(hidden_BTF, *axes, "mlp"), weights["down"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated_in_chunks(x: Float[Array, "B T D"], weights: Mapping[str, Any], chunk: int) -> Float[Array, "B T D"]:
    """Returns `gated`, computed `chunk` tokens of each device at a time; the backward pass recomputes each chunk.

    The weights are all-gathered once, before the loop. Their gradients are summed over chunks on each device, in
    float32, and then over devices once.
    """
    chunks, restore = sharding.local_chunks(x, chunk)
    copies = _copies(x, weights)
    return restore(jax.lax.map(lambda part: _each(part, copies), chunks))


def _copies(x, weights):
    """Returns the weights in the dtype of x, as [P C ...]: one copy for each device."""
    return jax.tree.map(lambda w: sharding.copies(cast(w, x.dtype), x), weights)


def _each(x_PCbtD, weights_PC):
    return jax.vmap(jax.vmap(lambda x, w: gated(x, w, None, None)))(x_PCbtD, weights_PC)


def _forward(x, weights, chunk):
    return gated_in_chunks(x, weights, chunk), (x, weights)


def _backward(chunk, saved, gradient):
    x, weights = saved
    chunks, restore = sharding.local_chunks(x, chunk)
    gradients, _ = sharding.local_chunks(gradient, chunk)
    copies = _copies(x, weights)

    def one(total, part):
        x, gradient = part
        _, pull = jax.vjp(_each, x, copies)
        d_x, d_copies = pull(gradient)
        return jax.tree.map(lambda total, d: total + d.astype(jnp.float32), total, d_copies), d_x

    def float32_copies(weights):
        return jax.tree.map(lambda w: sharding.copies(w.astype(jnp.float32), x), weights)

    start = float32_copies(jax.tree.map(jnp.zeros_like, weights))
    total, d_x = jax.lax.scan(one, start, (chunks, gradients))
    _, of_copies = jax.vjp(float32_copies, weights)
    return restore(d_x), *of_copies(total)


gated_in_chunks.defvjp(_forward, _backward)
