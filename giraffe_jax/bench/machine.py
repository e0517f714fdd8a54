"""What the device gives at best: matrix products per second, and bytes read per second."""

import jax
import jax.numpy as jnp

from giraffe_jax.bench.worker import fastest

SIZES = (2048, 4096)
READ = 2**28  # elements: far more than any cache holds


def measure(dtype: str) -> dict[str, float]:
    """Returns matmul_flops (FLOP/s of the fastest square product) and bandwidth (bytes/s of reading a large matrix)."""
    peak = 0.0
    for size in SIZES:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(jnp.matmul).lower(a, a).compile()
        peak = max(peak, 2.0 * size**3 / fastest(lambda: jax.block_until_ready(product(a, a)), most=20))  # noqa: B023
    x = jnp.ones(READ, dtype)
    # A product with a vector, which compilers split over all cores, unlike a sum.
    rows = x.reshape(-1, 4096)
    total = jax.jit(jnp.matmul).lower(rows, rows[0]).compile()
    seconds = fastest(lambda: jax.block_until_ready(total(rows, rows[0])), most=20)
    return dict(matmul_flops=peak, bandwidth=x.nbytes / seconds)
