"""Checks, before an export writes anything, what rounding to a smaller dtype does: overflow, and underflow to zero."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.model import ModelConfig

_DTYPES = ("float16", "bfloat16", "float32")  # in the order of the error's suggestions


def check_fits(
    flat: Mapping[str, Any], config: ModelConfig, dtype: str, name: Callable[[names.Name], str], norms: bool = True
) -> None:
    """Warns if a dtype rounds weights to zero, with their share; raises if it cannot hold one.

    Args:
      flat: the parameters by their paths.
      name: returns a tensor's name in the file, with "{i}" for its layer.
      norms: whether vectors are rounded too; False if the file keeps them in float32.

    Raises:
      ConfigError: a finite number that becomes infinite in `dtype`; it names the tensor, the number and what fits.
    """
    if dtype == "float32":  # holds every number of the other dtypes
        return
    lost = total = 0
    for row in names.names(config):
        for i in range(config.num_layers) if row.stacked else [0]:
            values = np.asarray(flat[row.path][i] if row.stacked else flat[row.path])
            total += values.size
            if values.dtype == jnp.dtype(dtype) or (values.ndim == 1 and not norms):
                continue
            with np.errstate(over="ignore"):
                rounded = values.astype(jnp.dtype(dtype))
            beyond = np.isinf(rounded) & np.isfinite(values)
            if beyond.any():
                worst = values[beyond].flat[np.argmax(np.abs(values[beyond].astype(np.float32)))]
                raise ConfigError(_refusal(name(row).format(i=i), worst, int(beyond.sum()), dtype))
            lost += int(np.count_nonzero(values)) - int(np.count_nonzero(rounded))
    if lost:
        least = float(jnp.finfo(dtype).smallest_subnormal)
        warnings.warn(
            f"{lost:,} of {total:,} weights ({lost / total:.2g} of them) are too small for {dtype} and become zero: "
            f"nearer to zero than to its least number, {least:.2g}.",
            stacklevel=3,
        )


def _refusal(tensor: str, worst: Any, count: int, dtype: str) -> str:
    with np.errstate(over="ignore"):
        fits = [d for d in _DTYPES if np.isfinite(np.asarray(worst).astype(jnp.dtype(d)))]
    return (
        f"dtype: {tensor} has {float(worst):g}"
        + (f", and {count - 1:,} more numbers," if count > 1 else ",")
        + f" beyond {float(jnp.finfo(dtype).max):g}, the largest that {dtype} holds. {' and '.join(fits)} "
        + ("hold it." if len(fits) > 1 else "holds it.")
    )
