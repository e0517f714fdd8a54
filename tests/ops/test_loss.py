import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from giraffe_jax.ops import choose
from giraffe_jax.ops.loss import next_token_loss, token_nll
from giraffe_jax.sharding import MeshConfig, batch_sharding, make_mesh
from tests.close import close, decided

HIDDEN = jax.random.normal(jax.random.key(0), (2, 21, 8))
UNEMBEDDING = jax.random.normal(jax.random.key(1), (8, 30))
TARGETS = jax.random.randint(jax.random.key(2), (2, 21), 0, 30)


@pytest.fixture(autouse=True, params=["cpu", "any device"])
def forms(request, monkeypatch):
    """The loss of one CPU, and that of every other device."""
    if request.param == "any device":
        monkeypatch.setattr(choose, "ONE_CPU", choose.ELSEWHERE)


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


@pytest.mark.parametrize("num_words", [30, 1100])
def test_of_equal_logits_the_first_word_is_the_argmax(num_words):
    """As numpy's; a model whose logits are all alike has not answered everything."""
    targets = jnp.array([[0, 1, 29, num_words - 1]])
    _, _, correct = token_nll(jnp.zeros((1, 4, 8)), jnp.ones((8, num_words)), targets)
    assert correct.tolist() == [[True, False, False, False]]
    lifted = jnp.ones((8, num_words)).at[:, 29].set(2.0).at[:, num_words - 1].set(2.0)
    _, _, correct = token_nll(jnp.ones((1, 4, 8)), lifted, targets)
    assert correct.tolist() == [[False, False, True, num_words == 30]]


def test_gradient_does_not_depend_on_the_chunk():
    def loss(hidden, unembedding, chunk):
        return token_nll(hidden, unembedding, TARGETS, chunk=chunk)[0].mean()

    whole = jax.grad(loss, (0, 1))(HIDDEN, UNEMBEDDING, 1024)
    chunked = jax.grad(loss, (0, 1))(HIDDEN, UNEMBEDDING, 5)
    for a, b in zip(whole, chunked, strict=True):
        close(a, b, ulps=1024)


WEIGHTS = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 21)), jnp.float32)


def test_weights_and_z_loss():
    loss, nats = next_token_loss(HIDDEN, UNEMBEDDING, TARGETS, WEIGHTS, z_loss=1e-3, chunk=4)
    nll, norm, _ = by_hand()
    weights = np.asarray(WEIGHTS, np.float64)
    close(loss, (weights * (nll + 1e-3 * norm**2)).sum())
    close(nats, (weights * nll).sum())


@pytest.mark.parametrize("chunk", [4, 1024])
def test_gradient_is_the_formulas(chunk):
    """softmax - one-hot, weighted, plus the z-loss's 2 z norm softmax, in float64."""
    z = 1e-2

    def loss(hidden, unembedding, weights, z):
        return 3 * next_token_loss(hidden, unembedding, TARGETS, weights, z_loss=z, chunk=chunk)[0]

    got = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(HIDDEN, UNEMBEDDING, WEIGHTS, z)
    hidden, matrix, weights = (np.asarray(x, np.float64) for x in (HIDDEN, UNEMBEDDING, WEIGHTS))
    nll, norm, _ = by_hand()
    probs = np.exp(hidden @ matrix - norm[..., None])
    one_hot = np.eye(30)[np.asarray(TARGETS)]
    d_logits = 3 * weights[..., None] * (probs * (1 + 2 * z * norm[..., None]) - one_hot)
    want = (d_logits @ matrix.T, np.einsum("btd,btv->dv", hidden, d_logits), 3 * (nll + z * norm**2))
    want = (*want, 3 * (weights * norm**2).sum())
    for a, b in zip(got, want, strict=True):
        close(a, b, ulps=256)


def loops(text):
    """Bodies of the while loops of an optimised program, by the calls that lead to them."""
    found = {m[1]: m[0] for m in re.finditer(r"^%?(\S+) \(.*?^}", text, re.M | re.S)}
    return [found[name] for name in set(re.findall(r"body=%?([\w.-]+)", text)) if name in found]


def sharded(loss, mesh, batch=8, tokens=512, d_model=16, vocab=1024):
    """The compiled gradient of a loss over a mesh, and its largest array on one device, in elements."""
    where = {"hidden": P(("data", "fsdp"), "context"), "matrix": P("fsdp", "tensor")}
    shape = {"hidden": (batch, tokens, d_model), "matrix": (d_model, vocab)}
    args = {n: jax.ShapeDtypeStruct(shape[n], jnp.float32, sharding=NamedSharding(mesh, where[n])) for n in shape}
    args["targets"] = jax.ShapeDtypeStruct((batch, tokens), jnp.int32, sharding=batch_sharding(mesh))
    args["weights"] = jax.ShapeDtypeStruct((batch, tokens), jnp.float32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1))).lower(*args.values()).compile().as_text()
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    return text, max(sizes)


@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (1, 2, 2, 2), (2, 1, 1, 4), (1, 1, 8, 1)])
def test_a_split_loss_holds_one_chunk_and_moves_no_gradient_inside_its_loop(sizes):
    def loss(hidden, matrix, targets, weights):
        return next_token_loss(hidden, matrix, targets, weights, chunk=16)[0]

    data, fsdp, context, tensor = sizes
    text, largest = sharded(loss, make_mesh(MeshConfig(*sizes)))
    rows, vocab = 8 // (data * fsdp), 1024 // tensor
    assert largest == max(rows * 16 * vocab, 16 * vocab, 8 * 512 // (data * fsdp * context) * 16)
    for body in loops(text):
        moved = re.findall(r"f32\[([\d,]*)\]\S* (?:all-reduce|all-gather|reduce-scatter|collective-permute)", body)
        # Only the log-sum-exp's maximum and sum and the target's logit, over a split vocabulary.
        assert all(math.prod(map(int, dims.split(","))) <= rows * 16 * 16 for dims in moved if dims), moved
        assert tensor > 1 or not moved


def test_one_device_and_eight_agree():
    def loss(hidden, matrix, targets, weights):
        return next_token_loss(hidden, matrix, targets, weights, z_loss=1e-3, chunk=3)[0]

    rng = np.random.default_rng(1)
    args = (rng.normal(size=(4, 24, 8)), rng.normal(size=(8, 32)))
    args = (*(jnp.asarray(x, jnp.float32) for x in args), jnp.asarray(rng.integers(0, 32, (4, 24))))
    args = (*args, jnp.asarray(rng.uniform(size=(4, 24)), jnp.float32))
    want = jax.grad(loss, (0, 1))(*args)
    for sizes in ((1, 4, 2, 1), (2, 1, 2, 2)):
        with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
            got = jax.jit(jax.grad(loss, (0, 1)))(*args)
        for a, b in zip(got, want, strict=True):
            close(a, b, ulps=1024)


def test_a_frozen_unembedding_costs_no_gradient():
    def loss(hidden, matrix):
        return next_token_loss(hidden, matrix, TARGETS, WEIGHTS, chunk=4)[0]

    def dots(grad):
        return str(jax.make_jaxpr(grad)(HIDDEN, UNEMBEDDING)).count("dot_general")

    assert dots(jax.grad(loss, (0, 1))) == 3 and dots(jax.grad(loss)) == 2


def test_the_logits_of_a_long_row_never_exist():
    def loss(hidden):
        return token_nll(hidden, jnp.zeros((8, 5000)), jnp.zeros((1, 4096), jnp.int32), chunk=128)[0].mean()

    compiled = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((1, 4096, 8), jnp.float32)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4096 * 5000 * 4 / 4
