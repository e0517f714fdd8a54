import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.loss import token_nll, weighted_loss
from tests.close import close, decided

HIDDEN = jax.random.normal(jax.random.key(0), (2, 21, 8))
UNEMBEDDING = jax.random.normal(jax.random.key(1), (8, 30))
TARGETS = jax.random.randint(jax.random.key(2), (2, 21), 0, 30)


def by_hand():
    scores = np.asarray(HIDDEN, np.float64) @ np.asarray(UNEMBEDDING, np.float64)
    norm = np.log(np.exp(scores).sum(-1))
    return norm - np.take_along_axis(scores, np.asarray(TARGETS)[..., None], -1)[..., 0], norm, scores


@pytest.mark.parametrize("chunk", [4, 7, 21, 1024])
def test_nll_norm_and_argmax(chunk):
    nll, norm, correct = token_nll(HIDDEN, UNEMBEDDING, TARGETS, chunk=chunk)
    want_nll, want_norm, scores = by_hand()
    close(nll, want_nll)
    close(norm, want_norm)
    clear = decided(scores)
    assert clear.any()
    np.testing.assert_array_equal(correct[clear], (scores.argmax(-1) == TARGETS)[clear])


def test_gradient_does_not_depend_on_the_chunk():
    def loss(hidden, unembedding, chunk):
        return token_nll(hidden, unembedding, TARGETS, chunk=chunk)[0].mean()

    whole = jax.grad(loss, (0, 1))(HIDDEN, UNEMBEDDING, 1024)
    chunked = jax.grad(loss, (0, 1))(HIDDEN, UNEMBEDDING, 5)
    for a, b in zip(whole, chunked, strict=True):
        close(a, b, ulps=1024)


def test_weights_and_z_loss():
    weights = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 21)), jnp.float32)
    nll, norm, _ = token_nll(HIDDEN, UNEMBEDDING, TARGETS)
    want_nll, want_norm, _ = by_hand()
    want = (np.asarray(weights, np.float64) * (want_nll + 1e-3 * want_norm**2)).sum()
    close(weighted_loss(nll, norm, weights, z_loss=1e-3), want)


def test_the_logits_of_a_long_row_never_exist():
    def loss(hidden):
        return token_nll(hidden, jnp.zeros((8, 5000)), jnp.zeros((1, 4096), jnp.int32), chunk=128)[0].mean()

    compiled = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((1, 4096, 8), jnp.float32)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4096 * 5000 * 4 / 4
