import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.positions import bind

MODEL = dict(head_dim=8, theta=1e4, original_len=64)


def drawn(positions, seeds=300, **parameters):
    e = bind([dict(name="pose", target_len=256, **parameters)], **MODEL)
    at = jax.jit(lambda key: e.at(positions, key=key).positions)
    return np.stack([at(jax.random.key(seed)) for seed in range(seeds)])


def test_one_skip_whose_place_and_size_are_uniform():
    """r ~ U{1 .. 32}, u ~ U{0 .. 192} for 64 tokens and target_len 256: train_pose.py's draws."""
    rows = drawn(jnp.tile(jnp.arange(64.0), (2, 1))).reshape(-1, 64)
    steps = np.diff(rows, axis=1)
    assert (rows[:, 0] == 0).all() and ((steps != 1).sum(1) <= 1).all()
    skips = steps.max(1) - 1
    places = np.where(skips > 0, steps.argmax(1) + 1, 0)
    assert set(places[skips > 0]) == set(range(1, 33))
    assert skips.min() < 8 and 185 < skips.max() <= 192
    np.testing.assert_allclose(skips.mean(), 96, atol=4 * 55.7 / 600**0.5)
    np.testing.assert_allclose(places[skips > 0].mean(), 16.5, atol=4 * 9.2 / 600**0.5)
    assert (rows[::2] != rows[1::2]).any()  # each row has its own


def test_each_packed_document_skips_by_itself():
    positions = jnp.concatenate([jnp.arange(24.0), jnp.arange(40.0)])[None]
    rows = drawn(positions)[:, 0]
    assert (rows[:, 0] == 0).all() and (rows[:, 24] == 0).all()
    first, second = np.diff(rows[:, :24]).max(1) - 1, np.diff(rows[:, 24:]).max(1) - 1
    assert first.max() <= 232 and second.max() <= 216 and abs(np.corrcoef(first, second)[0, 1]) < 0.25


def test_more_chunks_never_go_back_or_beyond_target_len():
    rows = drawn(jnp.arange(64.0)[None], chunks=5)[:, 0]
    steps = np.diff(rows, axis=1)
    assert (steps >= 1).all() and rows.max() <= 255 and ((steps != 1).sum(1) <= 4).all()
    assert (steps != 1).sum(1).max() == 4


def test_evaluation_and_documents_beyond_target_len_are_left_alone():
    positions = jnp.arange(300.0)[None]
    e = bind([dict(name="pose", target_len=256)], **MODEL)
    np.testing.assert_array_equal(e.at(positions).positions, positions)
    np.testing.assert_array_equal(e.at(positions, key=jax.random.key(0)).positions, positions)
