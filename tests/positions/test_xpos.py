import math

import jax.numpy as jnp
import pytest

from giraffe_jax.positions import bind, rotate, rotations
from tests.close import ULP
from tests.positions.closed_form import plain


@pytest.mark.parametrize(("m", "n"), [(300, 300), (300, 299), (1000, 12)])
def test_logit_of_each_plane_decays_by_the_papers_factor(m, n):
    """One plane at a time: cos(angle * distance) * zeta^(distance / B), with pairs (i, i + d/2) as in Llama weights."""
    d, scale_base = 16, 512.0
    e = bind([dict(name="xpos", scale_base=scale_base)], head_dim=d, theta=1e4, original_len=256)
    table = rotations(e.at(jnp.array([[float(m), float(n)]])))[0]
    for i in range(d // 2):
        unit = jnp.zeros((1, 2, 1, d)).at[..., i].set(1.0)
        q = rotate(unit, table.q_cos, table.q_sin)[0, 0, 0]
        k = rotate(unit, table.k_cos, table.k_sin)[0, 1, 0]
        zeta = (2 * i + 0.4 * d) / (1.4 * d)
        want = zeta ** ((m - n) / scale_base) * math.cos((m - n) * plain(i, head_dim=d))
        # Float32 angles of up to 1,000 radians, each of q's and k's off by an ulp or two of the angle.
        assert abs(float(q @ k) - want) < zeta ** ((m - n) / scale_base) * 8 * max(m, n) * ULP


def test_finite_at_the_stated_reach():
    e = bind([dict(name="xpos", scale_base=512.0)], head_dim=64, theta=1e4, original_len=2048)
    table = rotations(e.at(jnp.array([[1024.0 + 60 * 512]])))[0]
    assert all(bool(jnp.isfinite(t).all()) for t in table)
