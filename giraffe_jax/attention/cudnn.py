"""Causal attention by cuDNN: one band, every key up to the query's, 16-bit floats.

`jax.nn.dot_product_attention` rounds the log-sum-exp to the queries' dtype and gives its residuals no names, so that a
remat policy cannot keep them. The primitives that it calls do neither. They are private: `missing` says if a version of
JAX does not have them.
"""

import importlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from giraffe_jax import devices

_jax: Any = None
_FORWARD: Any = None
_BACKWARD: Any = None
_NAMES: tuple[str, ...] = ()
try:
    _jax = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    _FORWARD, _BACKWARD = _jax._dot_product_attention_fwd_p_wrapper, _jax._dot_product_attention_bwd_p_wrapper
    _NAMES = tuple(inspect.signature(_jax._dot_product_attention_fwd_impl).parameters)
except (ImportError, AttributeError):  # a JAX that has moved them: `missing` says so
    pass


def missing(head_dim: int) -> str | None:
    """Returns None if the kernels can be compiled for heads of this width, else what is missing."""
    if "sliding_window_length" not in _NAMES:
        return f"jax {jax.__version__} keeps cuDNN's attention elsewhere"
    if jax.default_backend() == "gpu":  # the cuDNN of absent GPUs cannot be checked
        try:
            version = _jax.check_cudnn_version()
        except Exception as error:
            return f"no cuDNN ({error})"
        if version < 8904:
            return f"cuDNN {version}"
    if int(devices.capability().partition(".")[0]) < 8:
        return "a GPU older than Ampere"
    return f"heads of {head_dim}; multiples of 8" if head_dim % 8 else None


def forward(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns causal attention in the dtype of q, and its log-sum-exp in float32."""
    out, lse = _FORWARD.bind(q, k, v, *_nothing(q.dtype), **_settings(q), is_training=True)
    return out, jnp.moveaxis(lse, 1, 2)


def backward(q, k, v, out, lse, d_out):
    """Returns the gradients of q, k and v, given that of the output; `lse` is taken to have no gradient."""
    gradients = _BACKWARD.bind(
        q, k, v, *_nothing(q.dtype), jnp.moveaxis(lse, 2, 1), out, d_out.astype(q.dtype), **_settings(q)
    )
    return tuple(gradients[:3])


def _nothing(dtype) -> tuple:
    """Returns empty arrays in place of bias, lengths, offsets and pages, which the primitives take as operands."""
    return (jnp.zeros(0, dtype),) * 7


def _settings(q) -> dict[str, Any]:
    settings: dict[str, Any] = dict(scale=q.shape[-1] ** -0.5, seed=42, dropout_rate=0.0, sliding_window_length=None)
    # No bias, and no gradient of one.
    settings |= dict(variadic_args=(False, False), layout=_jax.AttentionLayout.BTNH.value)
    settings |= dict(mask_type=_jax.MaskType.CAUSAL)
    return settings | (dict(score_mod=None) if "score_mod" in _NAMES else {})
