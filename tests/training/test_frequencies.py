"""Frequencies as parameters of a fine-tune: what moves, what is kept of it, and that a run resumes with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from giraffe_jax import checkpoint
from giraffe_jax.cli.evaluate import own_positions
from giraffe_jax.config import ConfigError, build
from giraffe_jax.model import Llama, ModelConfig, init_params, lora, unembedding
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.positions import frequencies
from giraffe_jax.sharding import paths, shardings
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import POSITIONS, load, losses, place, train
from giraffe_jax.training.optim import FrequencyConfig, OptimConfig, optimizer
from giraffe_jax.training.step import TrainState, init_state, make_update, train_step, trainable
from tests.close import close
from tests.training.test_train import MODEL, batch

ABOUT = dict(head_dim=8, theta=10000.0, original_len=64)
YARN = dict(name="yarn", factor=4.0)


def settings(path, how, **changes):
    data = dict(seq_len=128, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(min_len=120))])
    base = dict(tokenizer=path, model=MODEL | dict(positions=[YARN]), data=data, steps=4, save_every=2)
    return base | dict(optim=dict(lr=1e-2, warmup_steps=2), frequencies=how) | changes


def states(how, model, optim, log_ratio=0.0):
    params = init_params(model, jax.random.key(0))
    if how is not None:
        params["positions"] = {"log_ratio": jnp.full(4, log_ratio)}
    opt_state = optimizer(optim, 5, how).init(lora.split(params, trainable(params, None, how))[0])
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)))


def step(how, optim=None, log_ratio=0.0, **changes):
    model, optim = build(ModelConfig, MODEL), optim or OptimConfig(lr=1e-2, warmup_steps=0)
    encoding = model.bind(scaling=[YARN])
    before = jax.tree.map(np.asarray, states(how, model, optim, log_ratio))
    after, metrics = train_step(
        jax.tree.map(jnp.asarray, before), batch(), encoding, make_update(optim, 5, frequencies=how), model=model,
        **changes,
    )  # fmt: skip
    return before, after, metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_alone_is_adam_on_the_log_of_the_frequencies_and_no_weight_moves(accumulate):
    """The gradient is taken of a loss that is written out here, with the dense path."""
    how = FrequencyConfig(train="alone", regularise=0.5)
    optim = OptimConfig(lr=1e-2, warmup_steps=0, eps=1e-2, clip=None)  # eps, so that the step says the size too
    before, after, metrics = step(how, optim, log_ratio=0.3, accumulate=accumulate)
    model, data = build(ModelConfig, MODEL), batch()
    start = model.bind(scaling=[YARN])

    def loss(log_ratio):
        e = start.replace(inv_freq=jnp.asarray(start.inv_freq) * jnp.exp(log_ratio)).at(data["positions"])
        weights = {k: jax.tree.map(jnp.asarray, v) for k, v in before.params.items() if k != "positions"}
        hidden, _ = Llama(model).apply({"params": weights}, data["tokens"], e)
        nll = token_nll(hidden, unembedding(weights), data["targets"])[0]
        nats = jnp.sum(nll * data["weights"]) / data["weights"].sum()
        return nats + 0.5 * jnp.mean(log_ratio**2), nats

    (_, nats), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.full(4, 0.3))
    assert np.abs(gradient - 0.5 * 2 * 0.3 / 4).max() > 1e-4  # the regulariser is not all of it
    moved = after.params["positions"]["log_ratio"] - 0.3
    close(moved, -1e-2 * gradient / (np.abs(gradient) + 1e-2), ulps=16384)
    close(metrics["loss"], nats, ulps=256)
    close(metrics["grad_norm"], optax.global_norm(gradient), ulps=1024)
    for name, leaf in paths(before.params).items():
        if name != "positions/log_ratio":
            np.testing.assert_array_equal(paths(after.params)[name], leaf)
    held = sorted(x.shape for x in jax.tree.leaves(after.opt_state))
    assert {shape for shape in held if shape} == {(4,)} and len(held) <= 4  # two moments and counters, no weight's


@pytest.mark.parametrize("muon_lr", [None, 1e-2], ids=["adamw", "muon"])
def test_with_weights_each_has_its_own_rate_and_the_weights_move_as_without(muon_lr):
    optim = OptimConfig(lr=1e-3, muon_lr=muon_lr, warmup_steps=0)
    how = FrequencyConfig(train="with_weights", lr=0.05)
    _, after, _ = step(how, optim)
    _, plain, _ = step(None, optim)
    np.testing.assert_allclose(np.abs(after.params["positions"]["log_ratio"]), 0.05, rtol=1e-2)
    for name, leaf in paths(plain.params).items():
        close(paths(after.params)[name], leaf, ulps=1024)


def test_regularising_holds_the_start():
    free = step(FrequencyConfig(train="alone"), log_ratio=0.3)[1]
    held = step(FrequencyConfig(train="alone", regularise=1e6), log_ratio=0.3)[1]
    assert np.all(held.params["positions"]["log_ratio"] < 0.3)
    assert not np.all(free.params["positions"]["log_ratio"] < 0.3)


@pytest.mark.parametrize(
    "how",
    [
        dict(train="alone"),
        pytest.param(dict(train="with_weights", lr=0.05, regularise=0.1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_resumes_bit_for_bit_and_leaves_an_entry_for_any_config(how, tmp_path, tokenizer, capsys):
    config = settings(tokenizer, how)
    whole = train(config, tmp_path / "whole")
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("learned, for any config: "))
    run = tmp_path / "killed"
    train(config, run, quiet=True)
    with checkpoint.manager(run, keep=2) as checkpoints:
        checkpoints.delete(4)
    (run / POSITIONS).unlink()
    resumed = train(config, run, quiet=True)
    assert list(losses(run)) == list(losses(tmp_path / "whole"))
    assert resumed.config == whole.config and paths(resumed.params).keys() == paths(whole.params).keys()
    for name, leaf in paths(resumed.params).items():
        np.testing.assert_array_equal(leaf, paths(whole.params)[name])

    entries = json.loads((run / POSITIONS).read_text())
    assert entries == json.loads((tmp_path / "whole" / POSITIONS).read_text()) == json.loads(line.partition("= ")[2])
    with checkpoint.manager(run) as checkpoints:
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        tree = checkpoint.saved_tree(checkpoints, 4)["params"]
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), tree)
        saved = checkpoint.restore(checkpoints, 4, {"params": like})["params"]["positions"]["log_ratio"]
    assert np.abs(saved).min() > 0
    want = frequencies([YARN], **ABOUT)[0] * np.exp(np.asarray(saved, np.float64))
    np.testing.assert_allclose(frequencies(entries, **ABOUT)[0], want, rtol=1.2e-7)

    loaded = load(str(run))
    assert loaded.config == resumed.config and "positions" not in loaded.params
    assert [dict(p) for p in own_positions(str(run))] == entries
    assert load(str(run), dict(positions=[])).config.positions == ()
    again = dict(source=str(run), steps=1, data=config["data"], frequencies=how)
    further = train(again, tmp_path / "further", quiet=True)
    assert [p["name"] for p in further.config.positions] == ["longrope"]


def test_held_out_loss_is_that_of_the_learned_table(tmp_path, tokenizer):
    from giraffe_jax.data.config import DataConfig
    from giraffe_jax.data.pipeline import make_pipeline
    from giraffe_jax.training.loop import HELD_OUT_SEED
    from giraffe_jax.training.step import eval_step

    config = settings(tokenizer, dict(train="alone"), eval_every=4, eval_batches=1)
    held_out = config["data"] | dict(seed=5)
    trained_ = train(config | dict(eval_data=held_out, optim=dict(lr=0.3)), tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    drawn_apart = build(DataConfig, held_out | dict(seed=held_out["seed"] + HELD_OUT_SEED))
    data = make_pipeline(drawn_apart, trained_.tokenizer).batch(0)
    scores = {}
    for name, scaling in (("learned", trained_.config.positions), ("start", [YARN])):
        e = trained_.config.bind(scaling=scaling)
        nats, tokens = eval_step(trained_.params, data, e, model=build(ModelConfig, MODEL))
        scores[name] = float(nats / tokens)
    assert rows[-1]["eval_loss"] == pytest.approx(scores["learned"], rel=1e-6)
    assert abs(scores["learned"] - scores["start"]) > 1e-5


def test_the_sharding_table_names_the_ratio_and_every_device_holds_it(tokenizer):
    config = build(TrainConfig, settings(tokenizer, dict(train="with_weights")))
    from giraffe_jax.inference import LM
    from giraffe_jax.loading import state_axes
    from giraffe_jax.sharding import make_mesh

    mesh, model = make_mesh(config.mesh), build(ModelConfig, MODEL)
    state = place(config, LM(model, init_params(model, jax.random.key(0)), ByteTokenizer()), mesh)
    assert "positions/log_ratio" in state_axes(model)
    ratio = state.params["positions"]["log_ratio"]
    assert ratio.sharding.is_fully_replicated and len(ratio.sharding.device_set) == 8
    moments = {name: x for name, x in paths(state.opt_state).items() if name.endswith("/kernel")}
    assert moments and not any(x.sharding.is_fully_replicated for x in moments.values())
    assert jax.tree.structure(shardings(state, state_axes(model), mesh)) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(frequencies=dict(train="alone", lr=0.1)), "With 'alone' the learning rate is optim.lr"),
        (dict(frequencies=dict(train="alone", regularise=-1.0)), "regularise: must be >= 0"),
        (dict(frequencies=dict(train="with_weight")), "Did you mean 'with_weights'?"),
        (dict(optim=dict(muon_lr=0.1), frequencies=dict(train="alone")), "config.frequencies.train='alone' freezes"),
    ],
)
def test_wrong_requests(changes, message, tokenizer):
    with pytest.raises(ConfigError) as error:
        build(TrainConfig, settings(tokenizer, dict(train="alone")) | changes)
    assert message in str(error.value)


def test_a_state_without_frequencies_is_what_it_was(tokenizer):
    config = build(TrainConfig, settings(tokenizer, None))
    params = init_params(build(ModelConfig, MODEL), jax.random.key(0))
    assert paths(init_state(params, config).params).keys() == paths(params).keys()
