import math

import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build
from giraffe_jax.training.optim import FrequencyConfig, OptimConfig, decay_mask, learning_rate, optimizer

PARAMS = {"q": {"kernel": jnp.array([1.0, -2.0])}, "norm": {"scale": jnp.array([3.0])}}


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"), [("constant", 1e-2, 1e-2), ("linear", 5.5e-3, 1e-3), ("cosine", 5.5e-3, 1e-3)]
)
def test_schedules(schedule, halfway, end):
    lr = learning_rate(OptimConfig(lr=1e-2, schedule=schedule, warmup_steps=10, final_lr=1e-3), 110)
    np.testing.assert_allclose([lr(i) for i in range(10)], [1e-2 * (i + 1) / 10 for i in range(10)], rtol=1e-5)
    np.testing.assert_allclose([lr(10), lr(60), lr(110)], [1e-2, halfway, end], rtol=1e-5)


def test_cosine_is_a_cosine():
    lr = learning_rate(OptimConfig(lr=1.0, schedule="cosine", warmup_steps=0), 100)
    np.testing.assert_allclose(
        [lr(i) for i in (25, 75)], [(1 + math.cos(math.pi * x)) / 2 for x in (0.25, 0.75)], rtol=1e-5
    )


def test_one_adamw_step_by_hand():
    """First step of Adam moves by lr * g / (|g| + eps), after clipping; decay applies to kernels alone."""
    config = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5, clip=1.0, eps=1e-3)
    tx = optimizer(config, 10)
    grads = {"q": {"kernel": jnp.array([3.0, 0.0])}, "norm": {"scale": jnp.array([4.0])}}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    clipped = [3 / 5, 0.0, 4 / 5]  # norm 5, clipped to 1
    moves = [-0.1 * g / (abs(g) + 1e-3) for g in clipped]
    np.testing.assert_allclose(updates["q"]["kernel"], [moves[0] - 0.1 * 0.5 * 1, moves[1] + 0.1 * 0.5 * 2], rtol=1e-4)
    np.testing.assert_allclose(updates["norm"]["scale"], [moves[2]], rtol=1e-4)


def test_a_rate_may_stay_at_its_peak_before_it_falls():
    lr = learning_rate(OptimConfig(lr=1e-2, warmup_steps=10, schedule="linear", decay_steps=40, final_lr=1e-3), 100)
    np.testing.assert_allclose([lr(i) for i in (9, 10, 35, 60)], [1e-2] * 4, rtol=1e-5)
    np.testing.assert_allclose([lr(80), lr(100)], [5.5e-3, 1e-3], rtol=1e-5)
    with pytest.raises(ConfigError, match="decay_steps: got 40 with schedule='constant'"):
        OptimConfig(decay_steps=40)


def test_norms_are_not_decayed():
    assert decay_mask(PARAMS) == {"q": {"kernel": True}, "norm": {"scale": False}}
    assert decay_mask({"q": {"lora": {"a": 0, "b": 0}}}) == {"q": {"lora": {"a": True, "b": True}}}


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(ConfigError, match="optim.lr: must be > 0"):
        build(OptimConfig, dict(lr=0.0), "optim")


@pytest.mark.parametrize(("name", "shape", "rows"), [("q", (2, 6, 2, 4), 6), ("o", (2, 2, 4, 6), 8)])
def test_muon_moves_each_layers_matrix_by_its_orthogonal_factor(name, shape, rows):
    """With G = U S V^T the first step is along U V^T, its singular values near 1 (five Newton-Schulz steps)."""
    params = {"layers": {name: {"kernel": jnp.zeros(shape)}}, "embed": {"embedding": jnp.ones((4, 3))}}
    grads = {
        "layers": {name: {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}},
        "embed": {"embedding": jnp.full((4, 3), 0.5)},
    }
    tx = optimizer(OptimConfig(lr=0.1, muon_lr=0.02, warmup_steps=0, clip=None), 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    for layer in range(2):
        moved = np.asarray(updates["layers"][name]["kernel"][layer]).reshape(rows, -1)
        u, _, vt = np.linalg.svd(np.asarray(grads["layers"][name]["kernel"][layer]).reshape(rows, -1), False)
        along = np.diag(u.T @ moved @ vt.T) / -0.02
        assert (along > 0.6).all() and (along < 1.4).all(), along
        np.testing.assert_allclose(moved, u @ np.diag(-0.02 * along) @ vt, atol=2e-4)
    nesterov = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # Adam's first step is 1, looking ahead adds b1 m / (1 - b1^2)
    np.testing.assert_allclose(updates["embed"]["embedding"], -0.1 * nesterov, rtol=1e-4)


def test_a_muon_rate_of_zero_is_refused():
    with pytest.raises(ConfigError, match="optim.muon_lr: must be > 0"):
        build(OptimConfig, dict(muon_lr=0.0), "optim")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(lr=0.0), "optim.lr: must be > 0, got 0"),
        (lambda: OptimConfig(warmup_steps=-1), "optim.warmup_steps: must be >= 0, got -1"),
        (lambda: FrequencyConfig(train="alone", regularise=-1.0), "frequencies.regularise: must be >= 0, got -1"),
        (lambda: OptimConfig(lr=math.inf), "optim.lr: must be > 0 and finite, got inf"),
        (lambda: OptimConfig(clip=0.0), "optim.clip: must be > 0, got 0"),
        (lambda: OptimConfig(b1=1.0), "optim.b1: must be >= 0 and <= 0.999999, got 1"),
        (lambda: OptimConfig(schedule="linear", decay_steps=0), "optim.decay_steps: must be >= 1, got 0"),
        (lambda: FrequencyConfig(train="with_weights", lr=0.0), "frequencies.lr: must be > 0, got 0"),
        (lambda: FrequencyConfig(train="alone", lr=0.1), "frequencies.lr: got 0.1 with train='alone'"),
    ],
)
def test_what_is_made_by_hand_is_checked_too(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
