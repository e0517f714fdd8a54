import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.positions import bind

MODEL = dict(head_dim=8, theta=1e4, original_len=64)
FACTOR, N = 4, 96


def drawn(positions, seeds=400):
    e = bind([dict(name="cream", factor=FACTOR)], **MODEL)
    at = jax.jit(lambda key: e.at(positions, key=key).positions)
    return np.stack([at(jax.random.key(seed)) for seed in range(seeds)])[:, 0]


def test_head_and_tail_are_at_the_ends_and_the_middle_between():
    rows = drawn(jnp.arange(float(N))[None])
    assert (rows[:, 0] == 0).all() and (rows[:, -1] == FACTOR * N - 1).all()
    steps = np.diff(rows, axis=1)
    assert (steps >= 1).all() and ((steps > 1).sum(1) <= 2).all()
    heads = [
        32 if (row[:32] == np.arange(32)).all() and (row[-32:] == np.arange(352, 384)).all() else 16 for row in rows
    ]
    for row, head in zip(rows, heads, strict=True):
        np.testing.assert_array_equal(row[:head], np.arange(head))
        np.testing.assert_array_equal(row[-head:], np.arange(FACTOR * N - head, FACTOR * N))
    assert 0.4 < heads.count(32) / 400 < 0.6


def test_the_middle_ends_where_the_released_code_lets_it():
    """Its sampler, written out: a by inverting the Gaussian's distribution function, then a uniform integer."""
    rows = drawn(jnp.arange(float(N))[None], 2000)
    rng = np.random.default_rng(0)
    want = []
    for _ in range(20000):
        head = N // 3 if rng.integers(2) else 4 * FACTOR
        m = N - 2 * head
        a = int(np.clip(rng.normal(FACTOR + 1, 3.0), 2, 2 * FACTOR))
        want.append(rng.integers(int(head + (m - 1) * (a / 2)), int(a / 2 * N - head - 1) + 1))
    head = np.where((rows[:, 31] == 31) & (rows[:, 64] == 352), 32, 16)
    ends = rows[np.arange(len(rows)), N - head - 1]
    shares = [0.1, 0.3, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(np.quantile(ends, shares), np.quantile(want, shares), atol=16)


def test_evaluation_reads_plain_positions_and_packed_documents_their_own():
    e = bind([dict(name="cream", factor=FACTOR)], **MODEL)
    plain = jnp.concatenate([jnp.arange(24.0), jnp.arange(40.0)])[None]
    np.testing.assert_array_equal(e.at(plain).positions, plain)
    rows = drawn(plain, 50)
    assert (
        (rows[:, 23] == FACTOR * 24 - 1).all() and (rows[:, 24] == 0).all() and (rows[:, -1] == FACTOR * 40 - 1).all()
    )
