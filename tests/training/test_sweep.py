"""Trainings that differ in the optimizer's numbers alone: one compilation, each as optax with these numbers inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import giraffe_jax.training.step
from giraffe_jax.config import build
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.sharding import paths
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import losses, train
from giraffe_jax.training.optim import FrequencyConfig, OptimConfig, decay_mask, learning_rate, matrices, optimizer
from giraffe_jax.training.step import init_state, make_update, train_step
from tests.close import close
from tests.training.test_train import MODEL, batch, settings

STEPS = 4
RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FALL = dict(schedule="linear", decay_steps=3, final_lr=1e-3)
SWEEP = [
    *(dict(lr=lr) for lr in RATES),
    dict(lr=1e-2, warmup_steps=0),
    dict(lr=1e-2, **FALL),
    dict(lr=1e-2, schedule="cosine", final_lr=1e-3),
    dict(lr=1e-2, weight_decay=0.5, b1=0.8, b2=0.99, eps=1e-2, clip=0.5),
]


def by_optax(config, steps):
    """The schedule that optax joins, all its numbers in Python."""
    rest = max(steps - config.warmup_steps, 1)
    rest = rest if config.decay_steps is None else min(rest, config.decay_steps)
    after = dict(
        cosine=lambda: optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr / config.lr),
        linear=lambda: optax.linear_schedule(config.lr, config.final_lr, rest),
        constant=lambda: optax.constant_schedule(config.lr),
    )[config.schedule]()
    start = config.lr / max(config.warmup_steps, 1)
    warmup = optax.linear_schedule(start, config.lr, max(config.warmup_steps - 1, 1))
    bounds = [config.warmup_steps, max(steps - rest, config.warmup_steps)]
    return optax.join_schedules([warmup, optax.constant_schedule(config.lr), after], bounds)


def chain(config, steps, how=None):
    """The optax chain of a config, all its numbers in Python."""
    if how is not None and how.train == "with_weights":
        own = dict(lr=how.lr, final_lr=config.final_lr * how.lr / config.lr, muon_lr=None)
        chains = dict(weights=chain(config, steps), positions=chain(dataclasses.replace(config, **own), steps))
        return optax.partition(chains, lambda params: {k: k if k == "positions" else "weights" for k in params})
    lr, common = by_optax(config, steps), dict(eps=config.eps, weight_decay=config.weight_decay)
    common |= dict(mu_dtype=config.mu_dtype)
    if config.muon_lr is None:
        moves = optax.adamw(lr, b1=config.b1, b2=config.b2, mask=decay_mask, **common)
    else:
        moves = contrib.muon(
            lambda step: config.muon_lr / config.lr * lr(step), adam_b1=config.b1, adam_b2=config.b2,
            adam_learning_rate=lr, muon_weight_dimension_numbers=matrices, **common,
        )  # fmt: skip
    return moves if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), moves)


@jax.jit
def loss_and_gradient(params):
    model, data = build(ModelConfig, MODEL), batch()

    def loss(params):
        hidden, _ = Llama(model).apply({"params": params}, data["tokens"], model.bind().at(data["positions"]))
        nll = token_nll(hidden, unembedding(params), data["targets"])[0]
        return jnp.sum(nll * data["weights"]) / data["weights"].sum()

    return jax.value_and_grad(loss)(params)


def trained_by_optax(params, config, steps):
    """(The losses, before each update, of STEPS steps; the gradient of the first)."""
    tx = chain(config, steps)
    state, found = tx.init(params), []

    @jax.jit
    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        loss, grads = loss_and_gradient(params)
        found.append((loss, grads))
        params, state = step(params, grads, state)
    return [float(loss) for loss, _ in found], found[0][1]


def test_a_sweep_compiles_once_and_each_is_optax_with_its_numbers(traces):
    model = build(ModelConfig, MODEL)
    start = init_params(model, jax.random.key(0))
    seen, counts, by_rate = traces(giraffe_jax.training.step, "Llama"), [], []
    for numbers in SWEEP:
        optim, steps = OptimConfig(**(dict(eps=1e-3, warmup_steps=2, clip=1.0) | numbers)), 4 + len(counts)
        config = TrainConfig(data=build(TrainConfig, TINY).data, steps=steps, optim=optim)
        state, got = init_state(jax.tree.map(jnp.copy, start), config), []
        for i in range(STEPS):
            state, metrics = train_step(state, batch(), model.bind(), make_update(optim, steps), model=model)
            got.append(float(metrics["loss"]))
            if i == 0:
                first = {name: np.asarray(leaf) for name, leaf in paths(state.params).items()}
        counts.append(len(seen))
        want, grads = trained_by_optax(start, optim, steps)
        close(got, want, ulps=64)
        _check_first(start, first, grads, optim)
        if numbers.keys() == {"lr"}:
            by_rate.append(got[-1])
    assert counts[0] > 0 and set(counts) == {counts[0]}
    assert np.diff(sorted(by_rate)).min() > 1e-3 and len(by_rate) == len(RATES)


TINY = dict(data=dict(sources=[dict(kind="synthetic")], seq_len=16, batch_size=4), steps=1)


def _check_first(before, after, grads, optim):
    """Adam's first step is lr * g / (|g| + eps), g clipped, at the first rate; kernels decay."""
    rate = optim.lr / max(optim.warmup_steps, 1)
    flat = {name: np.asarray(g, np.float64) for name, g in paths(grads).items()}
    norm = sum(float((g**2).sum()) for g in flat.values()) ** 0.5
    for name, p in paths(before).items():
        g = flat[name] * min(1.0, optim.clip / norm)
        decay = optim.weight_decay if name.endswith("kernel") else 0.0
        moved = -rate * (g / (np.abs(g) + optim.eps) + decay * np.asarray(p, np.float64))
        # The difference of weights near 1 has their rounding: it is held to this and to a thousandth of the step.
        np.testing.assert_allclose(after[name] - np.asarray(p), moved, atol=1e-3 * rate + 2e-7, err_msg=name)


rates = jax.jit(jax.vmap(lambda lr, step: lr(step), (None, 0)))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    ("steps", "warmup", "decay"),
    [(1, 0, None), (1, 20, None), (9, 1, None), (9, 3, 2), (9, 9, None), (9, 12, 4), (9, 0, 20)],
)
def test_schedules_are_those_that_optax_joins(schedule, steps, warmup, decay):
    decay = None if schedule == "constant" else decay
    config = OptimConfig(lr=3e-3, schedule=schedule, warmup_steps=warmup, decay_steps=decay, final_lr=1e-4)
    every = np.arange(12, dtype=np.float32)  # beyond the last one, too
    close(rates(learning_rate(config, steps), every), jax.jit(by_optax(config, steps))(every), ulps=4)


PARAMS = {
    "layers": {"q": {"kernel": jnp.linspace(-1, 1, 24).reshape(1, 4, 2, 3)}, "norm": {"scale": jnp.ones((1, 4))}},
    "positions": {"log_ratio": jnp.zeros(4)},
}
KINDS = {
    "AdamW": (dict(), None),
    "no clip": (dict(clip=None), None),
    "bfloat16 moments": (dict(mu_dtype="bfloat16"), None),
    "Muon": (dict(muon_lr=2e-2), None),
    "frequencies": (dict(), FrequencyConfig(train="with_weights", lr=3e-2)),
    "Muon, frequencies": (dict(muon_lr=2e-2, clip=None), FrequencyConfig(train="with_weights", lr=3e-2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_moves_as_optax_and_keeps_its_state_in_the_same_tree(kind):
    """The tree of the state is what checkpoints hold: older ones have optax's own."""
    changes, how = KINDS[kind]
    params = PARAMS if how is not None else {"layers": PARAMS["layers"]}
    grads = jax.tree.map(lambda x: jnp.cos(7 * jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    seen = []

    @jax.jit
    def step(tx, params, state):
        seen.append(kind)
        return tx.update(grads, state, params)

    for numbers in (dict(lr=1e-2), dict(lr=2e-2, warmup_steps=3, weight_decay=0.1, b1=0.8, eps=1e-3), dict(**FALL)):
        config = OptimConfig(**(dict(lr=1e-2, warmup_steps=0, eps=1e-4) | numbers | changes))
        tx, oracle = optimizer(config, 5, how), chain(config, 5, how)
        state, wanted = tx.init(params), oracle.init(params)
        assert jax.tree.structure(state) == jax.tree.structure(wanted)
        update, got, want = jax.jit(oracle.update), params, params
        for _ in range(3):
            moved, state = step(tx, got, state)
            expected, wanted = update(grads, wanted, want)
            for name, leaf in paths(moved).items():
                close(leaf, paths(expected)[name], ulps=2**17 if "bfloat16" in kind else 256, what=name)
            got, want = (optax.apply_updates(a, b) for a, b in ((got, moved), (want, expected)))
        assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, wanted)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "runs",
    [
        [dict(optim=dict(lr=lr, warmup_steps=n), steps=2 + n, z_loss=n / 10) for n, lr in enumerate(RATES[-2:])],
        [dict(lora=dict(rank=2, alpha=a, lr_ratio=r)) for a, r in ((2.0, 2.0), (4.0, 16.0))],
    ],
    ids=["rates", "adapters"],
)
def test_whole_trainings_share_a_step(runs, tmp_path, tokenizer, traces):
    seen, ends = traces(giraffe_jax.training.step, "Llama"), []
    for i, changes in enumerate(runs):
        config = settings(tokenizer, steps=3, save_every=9) | changes
        config["model"] = config["model"] | dict(positions=[dict(name="yarn", factor=2.0)])
        train(config, tmp_path / str(i), quiet=True)
        ends.append(list(losses(tmp_path / str(i)))[-1][1])
    assert len(seen) == 1
    assert len(set(ends)) == len(ends)


def test_the_numbers_of_frequencies_are_arguments_and_what_is_trained_is_not():
    kinds = [("with_weights", 1e-2, 0.0), ("with_weights", None, 1.0), ("alone", None, 1.0)]
    made = [make_update(OptimConfig(), 9, None, FrequencyConfig(*kind)) for kind in kinds]
    first, second, alone = (jax.tree.structure(update) for update in made)
    assert first == second != alone


def test_structure_still_is_part_of_the_program():
    one, other = (make_update(OptimConfig(lr=lr), 9, LoraConfig(lr_ratio=r)) for lr, r in ((1e-3, 2.0), (1e-2, 4.0)))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for changed in (
        make_update(OptimConfig(clip=None), 9, LoraConfig(lr_ratio=2.0)),
        make_update(OptimConfig(mu_dtype="bfloat16"), 9, LoraConfig(lr_ratio=2.0)),
        make_update(OptimConfig(muon_lr=1e-2), 9, LoraConfig(lr_ratio=2.0)),
        make_update(OptimConfig(), 9, LoraConfig()),
        make_update(OptimConfig(), 9, LoraConfig(lr_ratio=2.0, train=())),
    ):
        assert jax.tree.structure(changed) != jax.tree.structure(one)
