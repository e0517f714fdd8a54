"""A linear map, with the low-rank adapter (LoRA) that its weights may have."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose


def cast(weight: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Returns a weight of one layer in the dtype of activations.

    On TPUs XLA moves the cast of a value that is read in bfloat16 only to where the value is produced: here to the
    start of the step, so that bfloat16 copies of all layers' weights are held until it ends (2 bytes a parameter). It
    cannot do so if the value is read as bits, which is how it is read here on a TPU.
    """
    if weight.dtype != jnp.float32 or jnp.dtype(dtype) != jnp.bfloat16 or choose().casts == "anywhere":
        return weight.astype(dtype)
    return _cast(weight)


@jax.custom_vjp
def _cast(weight):
    bits = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(weight, jnp.uint32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


_cast.defvjp(lambda weight: (_cast(weight), None), lambda _, gradient: (gradient.astype(jnp.float32),))


def linear(equation: str, x: Float[Array, "B T ..."], weights: Mapping[str, Any]) -> Float[Array, "B T ..."]:
    """Returns x W, plus scale * (x A) B if the weights have a low-rank adapter; the product A B is never computed.

    Args:
      equation: of x and W, like "btd,dnh->btnh".
      x: input.
      weights: {"kernel": W}, and maybe {"lora": {"a": A, "b": B, "scale": []}}.
    """
    inputs, _, outputs = re.split(",|->", equation)
    read, written = inputs[2:], outputs[2:]
    kernel = cast(weights["kernel"], x.dtype)
    out = cpu.linear(x, kernel) if choose().linear == "cpu" else jnp.einsum(equation, x, kernel)
    if "lora" not in weights:
        return out
    adapter = weights["lora"]
    low_BTr = jnp.einsum(f"{inputs},{read}r->btr", x, cast(adapter["a"], x.dtype))
    low_BTr *= adapter["scale"].astype(x.dtype)
    return out + jnp.einsum(f"btr,r{written}->{outputs}", low_BTr, cast(adapter["b"], x.dtype))
