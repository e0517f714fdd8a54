"""What multiplies the logits of each query, against the formula in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.positions import bind, rotations
from tests.close import close

MODEL = dict(head_dim=8, theta=1e4, original_len=32)
CLOSED_FORMS = [
    ("logn", {}, lambda n: max(1.0, math.log(n + 1) / math.log(32))),
    ("logn", dict(base=100.0), lambda n: max(1.0, math.log(n + 1) / math.log(100))),
    ("infoscale", {}, lambda n: max(1.0, math.sqrt((1 - (n + 1) ** (-2 / 8)) / (1 - 32 ** (-2 / 8))))),
    ("infoscale", dict(trained=5.0), lambda n: max(1.0, math.sqrt((1 - (n + 1) ** (-1 / 4)) / (1 - 5 ** (-1 / 4))))),
    ("llama4_temperature", dict(floor_scale=16.0), lambda n: 1 + 0.1 * math.log(1 + (n + 1) // 16)),
    ("llama4_temperature", dict(floor_scale=8.0, attn_scale=0.3), lambda n: 1 + 0.3 * math.log(1 + (n + 1) // 8)),
    ("ministral_temperature", {}, lambda n: 1 + 0.1 * math.log(1 + n // 32)),
]


@pytest.mark.parametrize(("name", "parameters", "expected"), CLOSED_FORMS)
def test_queries_are_multiplied_and_keys_are_not(name, parameters, expected):
    e = bind([dict(name=name, **parameters)], **MODEL).at(jnp.arange(300.0)[None])
    want = np.array([expected(n) for n in range(300)])
    close(e.query_scale[0], want)
    table = rotations(e)[0]
    close(jnp.hypot(table.q_cos, table.q_sin)[0], np.tile(want[:, None], 4))
    close(jnp.hypot(table.k_cos, table.k_sin), 1.0)


def test_temperatures_multiply():
    e = bind([dict(name="ministral_temperature"), dict(name="logn")], **MODEL).at(jnp.arange(100.0)[None])
    want = [(1 + 0.1 * math.log(1 + n // 32)) * max(1.0, math.log(n + 1) / math.log(32)) for n in range(100)]
    close(e.query_scale[0], want)
