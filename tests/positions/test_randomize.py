import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import bind, check
from tests.close import close

MODEL = dict(head_dim=8, theta=1e4, original_len=64)
POSITIONS = jnp.stack([jnp.arange(64.0), jnp.concatenate([jnp.arange(24.0), jnp.arange(40.0)])])


def giraffe(u):
    """One document of Giraffe's random_init_forward, in float64."""
    t = np.cumsum(np.asarray(u, np.float64))
    return t * len(t) / max(t[-1], len(t))


def test_steps_are_giraffes_walk_in_each_document():
    key = jax.random.key(3)
    got = bind([dict(name="randomize")], **MODEL).at(POSITIONS, key=key).positions
    steps = jax.random.uniform(jax.random.fold_in(key, 0), POSITIONS.shape, jnp.float32, 0.0, 2.0)
    want = [giraffe(steps[0]), np.concatenate([giraffe(steps[1, :24]), giraffe(steps[1, 24:])])]
    close(got, np.stack(want))


def test_mean_step_is_one_and_no_document_ends_beyond_its_tokens():
    positions = jnp.tile(jnp.arange(512.0), (64, 1))
    got = np.asarray(bind([dict(name="randomize")], **MODEL).at(positions, key=jax.random.key(0)).positions)
    assert got.max() <= 512 * (1 + 1e-5)
    assert (np.diff(got, axis=1) >= 0).all()
    # A sum of 512 uniform steps has mean 512 and standard deviation 13; capped from above, its mean is 512 - 13 * 0.4.
    assert abs(got[:, -1].mean() - (512 - 13.06 * 0.3989)) < 4


def test_subset_is_sorted_distinct_shared_and_covers_the_range():
    e = bind([dict(name="randomize", kind="subset", max_len=1024)], **MODEL)
    positions = jnp.tile(jnp.arange(64.0), (2, 1))
    drawn = np.stack([e.at(positions, key=jax.random.key(s)).positions for s in range(200)])
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (np.diff(drawn[:, 0], axis=1) >= 1).all() and drawn.min() >= 0 and drawn.max() < 1024
    # The t-th of 64 order statistics of 1024 integers has mean (t + 1) * 1025 / 65 - 1.
    want = (np.arange(64) + 1) * 1025 / 65 - 1
    assert np.abs(drawn[:, 0].mean(0) - want).max() < 25


def test_evaluation_reads_plain_positions():
    for scaling in ([dict(name="randomize")], [dict(name="randomize", kind="subset", max_len=512)]):
        np.testing.assert_array_equal(bind(scaling, **MODEL).at(POSITIONS).positions, POSITIONS)


def test_composes_with_linear_scaling_as_giraffe_trained_it():
    e = bind([dict(name="linear", factor=4.0), dict(name="randomize")], **MODEL)
    np.testing.assert_allclose(e.inv_freq, [1e4 ** (-2 * i / 8) / 4 for i in range(4)], rtol=2e-7)


def test_subset_needs_a_range():
    with pytest.raises(ConfigError, match="max_len: must be >= 1, got 0"):
        check([dict(name="randomize", kind="subset", max_len=0)])
    with pytest.raises(ValueError, match="needs max_len"):
        bind([dict(name="randomize", kind="subset")], **MODEL).at(POSITIONS)
