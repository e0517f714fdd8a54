import math

import jax.numpy as jnp

from giraffe_jax.positions import bind, rotate, rotations
from tests.close import close
from tests.positions.closed_form import assert_frequencies, plain


def test_logits_are_multiplied():
    e = bind([dict(name="scale", value=1.3)], head_dim=8, theta=1e4, original_len=32).at(jnp.arange(9.0)[None])
    table = rotations(e)[0]
    unit = jnp.zeros((1, 9, 1, 8)).at[..., 2].set(1.0)
    q, k = rotate(unit, table.q_cos, table.q_sin)[0, :, 0], rotate(unit, table.k_cos, table.k_sin)[0, :, 0]
    want = [[1.3 * math.cos((i - j) * 1e4 ** (-4 / 8)) for j in range(9)] for i in range(9)]
    close(q @ k.T, want)


def test_frequencies_stay():
    assert_frequencies([dict(name="scale", value=1.3)], plain, gain=math.sqrt(1.3))
