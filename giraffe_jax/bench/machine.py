"""What the device is, and what it gives at best: matrix products per second, and bytes read per second."""

from typing import Any

import jax
import jax.numpy as jnp

from giraffe_jax.bench.timing import QUICK, fastest

SIZES = (2048, 4096)
LARGE = (8192,)  # beside them where there is more than a CPU
READ = 2**28  # elements: far more than any cache holds


def measure(dtype: str) -> dict[str, Any]:
    """Returns platform, device_kind, matmul_flops (FLOP/s of the fastest square product, at the precision that a model
    of the dtype multiplies at) and bandwidth (bytes/s of reading a large matrix)."""
    device, peak = jax.devices()[0], 0.0
    quick, more = (0.0, ()) if device.platform == "cpu" else (QUICK, LARGE)
    for size in (*SIZES, *more):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            product = jax.jit(jnp.matmul).lower(a, a).compile()
        seconds = fastest(lambda: jax.block_until_ready(product(a, a)), most=20, least=quick)  # noqa: B023
        peak = max(peak, 2.0 * size**3 / seconds)
    x = jnp.ones(READ, dtype)
    # A product with a vector, which compilers split over all cores, unlike a sum.
    rows = x.reshape(-1, 4096)
    total = jax.jit(jnp.matmul).lower(rows, rows[0]).compile()
    seconds = fastest(lambda: jax.block_until_ready(total(rows, rows[0])), most=20, least=quick)
    about = dict(platform=device.platform, device_kind=device.device_kind)
    return about | dict(matmul_flops=peak, bandwidth=x.nbytes / seconds)
