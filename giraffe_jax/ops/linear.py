"""A linear map, with the low-rank adapter that may lie beside its kernel."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose


def linear(equation: str, x: Float[Array, "B T ..."], weights: Mapping[str, Any]) -> Float[Array, "B T ..."]:
    """Returns x W, plus scale * (x A) B where the weights have a low-rank adapter: W A B is never made.

    Args:
      equation: of x and W, like "btd,dnh->btnh".
      x: input.
      weights: {"kernel": W}, and maybe {"lora": {"a": A, "b": B, "scale": []}}.
    """
    inputs, _, outputs = re.split(",|->", equation)
    read, written = inputs[2:], outputs[2:]
    kernel = weights["kernel"].astype(x.dtype)
    out = cpu.linear(x, kernel) if choose().linear == "cpu" else jnp.einsum(equation, x, kernel)
    if "lora" not in weights:
        return out
    adapter = weights["lora"]
    low_BTr = jnp.einsum(f"{inputs},{read}r->btr", x, adapter["a"].astype(x.dtype))
    low_BTr *= adapter["scale"].astype(x.dtype)
    return out + jnp.einsum(f"btr,r{written}->{outputs}", low_BTr, adapter["b"].astype(x.dtype))
