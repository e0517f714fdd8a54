"""Biases against their papers' formulas, one pair at a time in Python floats."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.positions import bind, with_learned
from giraffe_jax.positions.methods.alibi import slopes
from tests.close import close

MODEL = dict(head_dim=8, theta=1e4, original_len=32)
N, T = 4, 60


def bias(name, **parameters):
    """The method's bias [N T T] with parameters drawn by its own init, and those parameters."""
    found = filled([dict(name=name, **parameters)])
    index = jnp.arange(T)
    got = jnp.broadcast_to(found(index[:, None], index[None, :], N), (N, T, T))
    return np.asarray(got), jax.tree.map(lambda x: np.asarray(x, np.float64), found.params.get(name))


def filled(scaling):
    """The bias of methods, with parameters that each draws by its own init."""
    return with_learned(bind(scaling, **MODEL), lambda item: item.init(jax.random.key(3), N)).bias


def assert_pairs(got, expected):
    for n in range(N):
        for i in range(T):
            np.testing.assert_allclose(
                got[n, i, : i + 1], [expected(n, i, j) for j in range(i + 1)], rtol=1e-4, atol=1e-5
            )


def test_alibi():
    got, _ = bias("alibi")
    assert_pairs(got, lambda n, i, j: -(2.0 ** (-8 * (n + 1) / N)) * (i - j))


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [
        (8, [2.0**-k for k in range(1, 9)]),
        (12, [2.0**-k for k in range(1, 9)] + [2.0 ** -(k - 0.5) for k in range(1, 5)]),
    ],
)
def test_alibi_slopes_of_the_papers_head_counts(num_heads, expected):
    np.testing.assert_allclose(slopes(num_heads), expected)


def test_t5():
    """Buckets as T5's code gives them: half exact, then logarithmic up to max_distance."""
    e = bind([dict(name="t5", num_buckets=8, max_distance=32)], **MODEL)
    table = np.random.default_rng(0).normal(size=(N, 8))
    index = jnp.arange(T)
    drawn = with_learned(e, lambda _: {"table": jnp.asarray(table, jnp.float32)}).bias
    got = np.asarray(drawn(index[:, None], index[None, :], N))

    def bucket(d):
        return d if d < 4 else min(4 + int(math.log(d / 4) / math.log(32 / 4) * 4), 7)

    assert [bucket(d) for d in (3, 4, 7, 12, 20, 31, 59)] == [3, 4, 5, 6, 7, 7, 7]
    assert_pairs(got, lambda n, i, j: table[n, bucket(i - j)])


def test_kerple():
    got, p = bias("kerple")
    assert (p["p"] <= 2).all() and (p["a"] <= 1).all() and (p["p"] >= 0).all()
    assert_pairs(got, lambda n, i, j: -max(p["p"][n], 0.01) * math.log(1 + max(p["a"][n], 0.01) * (i - j)))


def test_fire():
    got, p = bias("fire", width=5, threshold=16.0)

    def expected(n, i, j):
        def psi(x):
            return math.log(abs(p["c"] * x) + 1)

        x = psi(i - j) / psi(max(i, 16.0))
        return sum(p["w_out"][u, n] * max(p["w_in"][u] * x + p["b_in"][u], 0) for u in range(5)) + p["b_out"][n]

    assert_pairs(got, expected)


def test_s2_groups_half_of_the_heads_shifted():
    e = bind([dict(name="s2", group=16)], **MODEL).at(jnp.arange(float(T))[None], key=jax.random.key(0))
    index = jnp.arange(T)
    got = np.asarray(e.bias(index[:, None], index[None, :], N)) == 0
    for n in range(N):
        shift = 8 if n >= N // 2 else 0
        want = [[(i + shift) // 16 == (j + shift) // 16 for j in range(T)] for i in range(T)]
        np.testing.assert_array_equal(got[n], want)


def test_biases_add_up():
    index = jnp.arange(T)
    both = filled([dict(name="alibi"), dict(name="kerple")])
    want = bias("alibi")[0] + bias("kerple")[0]
    close(both(index[:, None], index[None, :], N), want)
