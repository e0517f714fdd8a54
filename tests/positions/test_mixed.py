"""Mixed windows: a batch of short and long documents against each row alone, with the encoding that is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import giraffe_jax.training.loop
import giraffe_jax.training.step
from giraffe_jax.config import ConfigError
from giraffe_jax.data import DataConfig
from giraffe_jax.inference import LM, generate, score
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.positions import bind, frequencies
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.optim import OptimConfig
from giraffe_jax.training.step import eval_step, init_state, make_update, train_step
from tests.close import close
from tests.positions.closed_form import LLAMA2, assert_frequencies, plain

SHAPE = dict(head_dim=8, theta=1e4, original_len=32)
LONG = [dict(name="yarn", factor=4.0, beta_fast=4.0)]
LONGER = [dict(name="longrope", short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0], factor=8.0)]
MIXED = [dict(name="mixed", choices=[[], LONG, LONGER], up_to=[32.0, 44.0])]
CONFIG = ModelConfig(vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, **SHAPE)
LENGTHS = [(20, 28), (48,), (32, 16), (40, 8)]  # documents of each row
OWN = {48: LONGER, 40: LONG}  # which methods a document of so many tokens reads; others none


def batch():
    tokens = jax.random.randint(jax.random.key(7), (4, 49), 0, 32)
    positions = jnp.array([[p for n in row for p in range(n)] for row in LENGTHS], jnp.float32)
    segments = jnp.array([[s for s, n in enumerate(row, 1) for _ in range(n)] for row in LENGTHS])
    rows = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], positions=positions, segments=segments)
    return rows | dict(weights=jnp.ones((4, 48)).at[:, 5:9].set(0.5))


@pytest.fixture(scope="module")
def params():
    """With large queries, so that attention is not nearly uniform."""
    tree = init_params(CONFIG, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(lambda path, x: x * 4 if "'q'" in str(path[-2]) else x, tree)


@jax.jit
def nats(params, part, e):
    hidden, _ = Llama(CONFIG).apply({"params": params}, part["tokens"], e, part["segments"])
    nll, _, _ = token_nll(hidden, unembedding(params), part["targets"])
    return jnp.sum(part["weights"] * nll)


def each_document(params):
    """Loss and gradient summed over documents, each alone in a forward pass with its own methods."""
    total, gradient = 0.0, jax.tree.map(jnp.zeros_like, params)
    grad = jax.jit(jax.value_and_grad(nats))
    for row, sizes in enumerate(LENGTHS):
        start = 0
        for n in sizes:
            part = {k: v[row : row + 1, start : start + n] for k, v in batch().items()}
            e = bind(OWN.get(n, []), length=n, **SHAPE).at(part["positions"])
            loss, g = grad(params, part, e)
            total, gradient = total + loss, jax.tree.map(jnp.add, gradient, g)
            start += n
    return total, gradient


def test_a_mixed_batch_is_each_document_with_its_own_encoding(params):
    want, want_gradient = each_document(params)
    e = bind(MIXED, **SHAPE).at(batch()["positions"])
    assert e.inv_freq.shape == (4, 48, 4)
    got, gradient = jax.jit(jax.value_and_grad(nats))(params, batch(), e)
    close(got, want, ulps=256)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
        close(a, b, ulps=1024)
    plain_loss = nats(params, batch(), bind([], **SHAPE).at(batch()["positions"]))
    assert abs(plain_loss - want) > 1e-3 * want


def test_training_and_held_out_loss_mix_too_in_one_compilation(params, traces):
    want, want_gradient = each_document(params)
    weight = batch()["weights"].sum()
    optim = OptimConfig(lr=1.0)
    model = dataclasses.replace(CONFIG, positions=())
    config = TrainConfig(data=DataConfig(sources=(), seq_len=48, batch_size=4), steps=2, optim=optim)
    seen, counts = traces(giraffe_jax.training.step, "Llama"), []
    for factor in (4.0, 6.0):
        choices = [[], [LONG[0] | dict(factor=factor)], LONGER]
        e = bind([MIXED[0] | dict(choices=choices)], **SHAPE)
        state = init_state(jax.tree.map(jnp.copy, params), config)
        _, metrics = train_step(state, batch(), e, make_update(optim, 2), model=model)
        if factor == 4.0:
            close(metrics["loss"], want / weight, ulps=256)
            norm = sum(float(jnp.sum((g / weight) ** 2)) for g in jax.tree.leaves(want_gradient)) ** 0.5
            close(metrics["grad_norm"], norm, ulps=1024)
        counts.append(len(seen))
    assert counts[0] > 0 and counts[1] == counts[0]
    held_out, tokens = eval_step(params, batch(), bind(MIXED, **SHAPE), model=model)
    close([held_out, tokens], [want, weight], ulps=256)


def test_rows_may_name_their_choice(params):
    positions = jnp.tile(jnp.arange(16.0), (3, 1))
    e = bind(MIXED, **SHAPE).at(positions, choice=jnp.array([2, 0, 1]))
    for row, scaling in enumerate((LONGER, [], LONG)):
        inv_freq, gain = frequencies(scaling, length=64, **SHAPE)
        np.testing.assert_array_equal(e.inv_freq[row], np.tile(inv_freq, (16, 1)))
        np.testing.assert_allclose(e.gain[row], gain, rtol=1e-7)
    with pytest.raises(ValueError, match="nothing to choose from"):
        bind([], **SHAPE).at(positions, choice=jnp.array([2, 0, 1]))


def test_a_length_that_is_given_chooses_for_all(params):
    for length, scaling in ((32, []), (33, LONG), (44, LONG), (45, LONGER)):
        np.testing.assert_array_equal(
            frequencies(MIXED, length=length, **SHAPE)[0], frequencies(scaling, length=64, **SHAPE)[0]
        )
    lm = LM(CONFIG, params, None)
    tokens = np.asarray(batch()["tokens"][:1])
    want, _ = score(lm, tokens, bind(LONG, length=40, **SHAPE))
    close(score(lm, tokens, bind(MIXED, length=40, **SHAPE))[0], want, ulps=256)


def test_generation_goes_by_its_length(params):
    """20 new tokens after 20 end at 40, where yarn is read, pinned; running, the first twelve are plain."""
    lm = LM(CONFIG, params, None)
    prompt = [np.asarray(batch()["tokens"][0, :20]).tolist()]
    pinned, fixed = (generate(lm, prompt, 20, bind(s, **SHAPE), stop=[]) for s in (MIXED, LONG))
    assert pinned == fixed
    running = generate(lm, prompt, 20, bind(MIXED, **SHAPE), policy="running", stop=[])
    assert running[0][:12] == generate(lm, prompt, 12, bind([], **SHAPE), stop=[])[0]


def test_methods_compose_with_each_choice():
    before = [dict(name="linear", factor=2.0), dict(name="mixed", choices=[[], [dict(name="linear", factor=4.0)]])]
    after = [before[1], before[0]]
    for scaling in (before, after):
        assert_frequencies(scaling, lambda i: plain(i) / 2, length=4096)
        assert_frequencies(scaling, lambda i: plain(i) / 8, length=4097)


def test_choices_of_layers():
    lists = [[1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
    per_layer = [dict(name="longrope", short_factor=[1.0] * 4, long_factor=lists)]
    e = bind([dict(name="mixed", choices=[[], per_layer])], num_layers=2, **SHAPE)
    got = e.at(batch()["positions"]).inv_freq
    assert got.shape == (2, 4, 48, 4)
    for layer in range(2):
        np.testing.assert_allclose(
            got[layer, 1, 5], [plain(i, head_dim=8) / lists[layer][i] for i in range(4)], rtol=2e-7
        )
        np.testing.assert_allclose(got[layer, 0, 5], [plain(i, head_dim=8) for i in range(4)], rtol=2e-7)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(choices=[[]]), "choices: expected at least two lists of methods"),
        (dict(choices=[[], [dict(name="linear")]]), r"choices\[1\]\[0\] \(linear\): missing \['factor'\]"),
        (dict(choices=[[], LONG], up_to=[32.0, 64.0]), "2 choices need 1 rising lengths in up_to"),
        (dict(choices=[[], LONG, LONG], up_to=[64.0, 32.0]), "3 choices need 2 rising lengths"),
        (
            dict(choices=[[], [dict(name="dynamic", factor=2.0)]]),
            "same frequencies at every length; those of dynamic differ",
        ),
        (dict(choices=[[], [dict(name="rerope")]]), "frequencies and gain only, but rerope does more"),
        (dict(choices=[[], [dict(name="logn")]]), "frequencies and gain only, but logn does more"),
    ],
)
def test_refusals(parameters, message):
    with pytest.raises(ConfigError, match=message):
        bind([dict(name="mixed", **parameters)], **LLAMA2 if "rising" in message else SHAPE)


def test_compositions_that_are_refused():
    mixed = MIXED[0]
    for scaling, message in (
        (
            [dict(name="dynamic", factor=2.0), mixed],
            r"\[1\] \(mixed\): dynamic already says how frequencies follow",
        ),
        ([mixed, mixed], r"\[1\] \(mixed\): mixed already says how frequencies follow"),
        ([mixed, dict(name="nope_layers", every=2)], r"\[1\] \(nope_layers\): after mixed"),
    ):
        with pytest.raises(ConfigError, match=message):
            bind(scaling, num_layers=2, **SHAPE)
