"""The kernels for TPUs: interpreted on a CPU, against dense attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.attention import place_of_rows, tpu
from giraffe_jax.attention.dense import MASKED
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.positions import Band, Range
from tests.attention.test_kernels import BANDS, SEGMENTS, B, T, arrays, by_definition
from tests.close import close

TILES = tpu.Tiles(tpu.Tile(32, 16), tpu.Tile(16, 32), tpu.Tile(32, 16))


@jax.jit
def by_kernel(q, k, v, d_out, place, bands):
    """Returns (output, log-sum-exp, gradients); what comes back for the log-sum-exp is the sum of d_out."""
    seen = intervals(place, bands)
    out, lse = tpu.forward(q, k, v, seen, tile=TILES.forward, interpret=True)
    dot = jnp.sum((d_out * out).astype(jnp.float32), -1) - jnp.where(lse > MASKED, d_out.sum(-1), 0.0)
    return out, lse, tpu.backward(q, k, v, seen, lse, dot, d_out, tiles=TILES, interpret=True)


@pytest.mark.parametrize("name", BANDS)
def test_the_kernel_and_its_gradients_are_dense_attention(name):
    bands, place = BANDS[name], place_of_rows(SEGMENTS, (B, T))
    inputs = (*arrays(len(bands) or 1), place, bands)
    found, want = by_kernel(*inputs), by_definition(*inputs)
    close(found[0], want[0])
    close(found[1], want[1])
    for got, expected in zip(jax.tree.leaves(found[2]), jax.tree.leaves(want[2]), strict=True):
        close(got, expected, 256)
