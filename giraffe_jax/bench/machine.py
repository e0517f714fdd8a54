"""The device's name and peak rates: matmul FLOP/s and memory bandwidth in bytes/s."""

from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax.bench.timing import QUICK, fastest

SIZES = (2048, 4096)
LARGE = (8192,)  # in addition, on accelerators
READ = 2**28  # elements: far more than fit any cache


def measure(dtype: str) -> dict[str, Any]:
    """Returns platform, device_kind, matmul_flops (FLOP/s of the fastest square matmul, at the matmul precision of a
    model of this dtype) and bandwidth (bytes/s when reading a large matrix)."""
    device, peak = jax.devices()[0], 0.0
    quick, large_sizes = (0.0, ()) if device.platform == "cpu" else (QUICK, LARGE)
    for size in (*SIZES, *large_sizes):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            product = jax.jit(jnp.matmul).lower(a, a).compile()
        seconds = fastest(lambda: jax.block_until_ready(product(a, a)), most=20, least=quick)  # noqa: B023
        peak = max(peak, 2.0 * size**3 / seconds)
    x = jnp.ones(READ, dtype)
    # A matrix-vector product: compilers split it over all cores, unlike a sum.
    rows = x.reshape(-1, 4096)
    total = jax.jit(jnp.matmul).lower(rows, rows[0]).compile()
    seconds = fastest(lambda: jax.block_until_ready(total(rows, rows[0])), most=20, least=quick)
    hardware = dict(platform=device.platform, device_kind=device.device_kind)
    return hardware | dict(matmul_flops=peak, bandwidth=x.nbytes / seconds)
