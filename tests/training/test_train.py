"""Training: a step against optax by hand, resuming bit for bit, and what a wrong request is told."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import giraffe_jax.data.pipeline
import giraffe_jax.training.loop
import giraffe_jax.training.optim
import giraffe_jax.training.step
from giraffe_jax import checkpoint
from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import make_pipeline
from giraffe_jax.inference import LM
from giraffe_jax.loading import load
from giraffe_jax.model import Llama, ModelConfig, unembedding
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.records import read_rows
from giraffe_jax.sharding import MeshConfig, make_mesh, paths
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import losses, place, train
from giraffe_jax.training.optim import optimizer
from giraffe_jax.training.program import program
from giraffe_jax.training.step import init_state, make_update, train_step
from tests.close import close

MODEL = dict(vocab_size=258, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
             original_len=64, attention="dense")  # fmt: skip


def settings(path, **changes):
    positions = [dict(name="linear", factor=2.0), dict(name="randomize")]
    data = dict(seq_len=128, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(min_len=120))])
    base = dict(tokenizer=path, model=MODEL | dict(positions=positions), data=data, steps=6, save_every=2)
    return base | dict(optim=dict(lr=1e-2, warmup_steps=2)) | changes


def held_out(seq_len=128, batch_size=8, **weights):
    synthetic = dict(min_len=120, **weights)
    return dict(seq_len=seq_len, batch_size=batch_size, sources=[dict(kind="synthetic", synthetic=synthetic)])


def batch(rows=4, seq_len=16):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 258, (rows, seq_len + 1)).astype(np.int32)
    weights = rng.uniform(size=(rows, seq_len)).astype(np.float32)
    positions = np.tile(np.arange(seq_len, dtype=np.float32), (rows, 1))
    one = np.ones((rows, seq_len), np.int32)
    arrays = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights, positions=positions, segments=one)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_adamw_on_the_weighted_mean_loss(accumulate, tokenizer):
    """By a program of the config, whose z-loss adds to gradients and not to the loss that is told."""
    z_loss = 0.1
    config = build(TrainConfig, settings(tokenizer, accumulate=accumulate, z_loss=z_loss))
    model = build(ModelConfig, MODEL)
    from giraffe_jax.model import init_params

    params = init_params(model, jax.random.key(0))
    data = batch()

    def loss(params):
        e = model.bind().at(data["positions"])
        hidden, _ = Llama(model).apply({"params": params}, data["tokens"], e)
        nll, norm, _ = token_nll(hidden, unembedding(params), data["targets"])
        told, moving = (jnp.sum(x * data["weights"]) / data["weights"].sum() for x in (nll, nll + z_loss * norm**2))
        return moving, told

    (_, want_loss), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    tx = optimizer(config.optim, config.steps)

    @jax.jit
    def step(params, grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    want = step(params, grads)
    state = init_state(jax.tree.map(jnp.copy, params), config)
    state, metrics = program(config, model, make_mesh(config.mesh)).step(state, data)
    close(metrics["loss"], want_loss)
    close(metrics["grad_norm"], optax.global_norm(grads), ulps=1024)
    for name, leaf in paths(state.params).items():
        # Adam's first step divides the gradient by its own size: where that is nearly zero, rounding decides the sign.
        gradient = np.abs(paths(grads)[name])
        clear = gradient > 1e-2 * gradient.max()
        assert np.abs(leaf - paths(want)[name])[clear].max() < 1e-3 * float(metrics["lr"]), name
    assert int(state.step) == 1
    # A step draws by the seed and its own number, whatever came before it.
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(config.seed)))


def test_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(tmp_path, tokenizer):
    config = settings(tokenizer)
    whole = train(config, tmp_path / "whole", quiet=True)
    assert [s for s, _ in losses(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]
    # Stop after the save of step 4, as a kill would: later rows are on disk, the checkpoint of step 6 is not.
    run = tmp_path / "killed"
    train(config, run, quiet=True)
    with checkpoint.manager(run, keep=2) as checkpoints:
        checkpoints.delete(6)
    resumed = train(config, run, quiet=True)
    assert list(losses(run)) == list(losses(tmp_path / "whole"))
    for name, leaf in paths(resumed.params).items():
        np.testing.assert_array_equal(leaf, paths(whole.params)[name])
    with checkpoint.manager(run, keep=2) as checkpoints:
        assert checkpoints.all_steps() == [4, 6]
        about = checkpoint.read_about(checkpoints, 6)
    assert about["next_step"] == 6 and about["model"]["positions"][0]["factor"] == 2.0


def test_a_workdir_is_a_source_and_its_checkpoint_moves_to_another_mesh(tmp_path, tokenizer):
    data = settings(tokenizer)["data"]
    first = train(settings(tokenizer, steps=2), tmp_path / "one", quiet=True)
    loaded = load(str(tmp_path / "one"), dict(positions=[]))
    assert loaded.config.positions == () and first.config.positions != ()
    for name, leaf in paths(loaded.params).items():
        np.testing.assert_array_equal(leaf, paths(first.params)[name])
    again = dict(source=str(tmp_path / "one"), data=data, steps=1, mesh=dict(data=2, fsdp=4))
    moved = train(again, tmp_path / "two", quiet=True)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(moved.params))


def test_what_a_model_learns_anew_starts_beside_the_weights_of_its_source(tmp_path, tokenizer):
    plain = train(build(TrainConfig, settings(tokenizer, steps=2)), tmp_path, quiet=True)
    tokens = jnp.arange(24)[None]

    def hidden(loaded):
        e = loaded.config.bind(24.0).at(jnp.arange(24.0)[None])
        return Llama(loaded.config).apply({"params": loaded.params}, tokens, e)[0]

    # T5's biases start at zero, so the model is the same function until it is trained.
    richer = load(str(tmp_path), dict(positions=[*plain.config.positions, dict(name="t5")]))
    added = paths(richer.params).keys() - paths(plain.params).keys()
    assert added and all("t5" in name or "bias" in name for name in added)
    close(hidden(richer), hidden(plain), ulps=256)
    assert paths(load("giraffe-mini", dict(qk_norm=True)).params).keys() > paths(load("giraffe-mini").params).keys()


@pytest.mark.parametrize("muon_lr", [None, pytest.param(1e-2, marks=pytest.mark.slow)], ids=["adamw", "muon"])
def test_a_split_optimizer_moves_as_one_device_does(muon_lr, tmp_path, tokenizer):
    # A large eps makes Adam's step as smooth in the gradient as the gradient is in the order of its sums.
    optim = dict(lr=1e-1, muon_lr=muon_lr, warmup_steps=0, eps=1.0)
    config = settings(tokenizer, steps=2, optim=optim)
    one = train(config | dict(mesh=dict(data=8, fsdp=1)), tmp_path / "replicated", quiet=True)
    split = train(config | dict(mesh=dict(fsdp=8)), tmp_path / "split", quiet=True)
    mesh = make_mesh(MeshConfig(fsdp=8))
    moments = paths(place(build(TrainConfig, config), split, mesh).opt_state)
    kernels = {name: x for name, x in moments.items() if name.endswith("/kernel")}
    assert kernels and not any(x.sharding.is_fully_replicated for x in kernels.values())
    for name, leaf in paths(split.params).items():
        close(leaf, paths(one.params)[name], ulps=1024, what=name)


@pytest.mark.parametrize("best", [2, 4, 6])
def test_best_checkpoint_by_held_out_loss_is_kept(best, tmp_path, tokenizer, monkeypatch):
    def held_out_loss(config, model, state, *_):
        return 3.0 if int(state.step) == best else 5.0

    monkeypatch.setattr(
        giraffe_jax.training.loop, "_held_out_loss", held_out_loss
    )  # how a run goes is nothing to rest on
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, steps=6, keep=1, save_every=2, eval_every=2, eval_batches=1)
    train(config | dict(eval_data=data | dict(seed=9)), tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}[best] == 3.0
    with checkpoint.manager(tmp_path, keep=1, best="eval_loss") as checkpoints:
        assert set(checkpoints.all_steps()) == {best, 6}


def test_a_workdir_of_another_run_is_refused_and_left_alone(tmp_path, tokenizer):
    train(settings(tokenizer, steps=1), tmp_path, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"holds another run: config.optim.lr was 0.01, now 0.5"):
        train(settings(tokenizer, steps=1, optim=dict(lr=0.5, warmup_steps=2)), tmp_path, quiet=True)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_best_is_among_what_was_measured_on_the_same_data(tmp_path, tokenizer, monkeypatch):
    """Losses on one data say nothing of losses on other data: 1.0 on what was asked first is not better than 2.0."""
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, keep=1, save_every=1, eval_every=1, eval_batches=1, optim=dict(lr=1e-2))
    for seed, steps, values in ((9, 2, [1.0, 1.5]), (10, 5, [2.5, 2.0, 3.0])):
        given = iter(values)
        monkeypatch.setattr(giraffe_jax.training.loop, "_held_out_loss", lambda *_, given=given: next(given))
        train(config | dict(steps=steps, eval_data=data | dict(seed=seed)), tmp_path, quiet=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.steps(checkpoints) == [4, 5]
        assert checkpoint.find_step(checkpoints, "best") == 4


def test_the_same_files_elsewhere_are_the_same_run_and_others_are_not(tmp_path, tokenizer):
    for folder in ("here", "there", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(("other " if folder == "other" else "words ") * 200)

    def config(folder, **changes):
        source = dict(kind="text", path=str(tmp_path / folder))
        return settings(tokenizer, data=dict(seq_len=128, batch_size=8, sources=[source]), **changes)

    train(config("here", steps=2, optim=dict(lr=1e-2)), tmp_path / "run", quiet=True)
    train(config("there", steps=4, optim=dict(lr=1e-2)), tmp_path / "run", quiet=True)
    rows = [row["changed"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "changed" in row]
    key = "data.sources[0].path"
    assert rows == [{key: [str(tmp_path / "here"), str(tmp_path / "there")], "steps": [2, 4]}]
    with pytest.raises(ConfigError, match="holds another run: its data is not the same"):
        train(config("other", steps=4, optim=dict(lr=1e-2)), tmp_path / "run", quiet=True)


def test_what_changed_is_kept_only_once_it_is_recorded(tmp_path, tokenizer, monkeypatch):
    config = settings(tokenizer, steps=2, optim=dict(lr=1e-2))
    train(config, tmp_path, quiet=True)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match="does not divide a micro-batch"):
        train(config | dict(accumulate=4), tmp_path, quiet=True)
    with monkeypatch.context() as broken:
        broken.setattr(giraffe_jax.training.loop, "place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config | dict(steps=4, loss_chunk=64), tmp_path, quiet=True)
    assert (tmp_path / "config.json").read_text() == before
    train(config | dict(steps=4, loss_chunk=64), tmp_path, quiet=True)
    rows = [row["changed"] for row in read_rows(tmp_path / "metrics.jsonl") if "changed" in row]
    assert rows == [{"loss_chunk": [1024, 64], "steps": [2, 4]}]
    assert json.loads((tmp_path / "config.json").read_text())["loss_chunk"] == 64


def test_a_damaged_checkpoint_is_gone_back_behind_and_the_run_ends_alike(tmp_path, tokenizer):
    config = settings(tokenizer, optim=dict(lr=1e-2, warmup_steps=2, schedule="constant"))
    whole = train(config, tmp_path / "one", quiet=True)
    train(config | dict(steps=4), tmp_path / "two", quiet=True)  # steps may grow where the rate does not know of them
    files = [p for p in (tmp_path / "two" / "checkpoints" / "4" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.warns(UserWarning, match="checkpoint 4 is (damaged|now)") as said:
        again = train(config, tmp_path / "two", quiet=True)
    assert any("changed" in str(w.message) and "going on from 2" in str(w.message) for w in said)
    assert (tmp_path / "two" / "damaged" / "4").is_dir()
    for name, leaf in paths(again.params).items():
        np.testing.assert_array_equal(leaf, paths(whole.params)[name])
    assert dict(losses(tmp_path / "two")) == dict(losses(tmp_path / "one"))
    with checkpoint.manager(tmp_path / "two") as checkpoints:
        assert checkpoint.damage(checkpoints, 4) is None  # saved anew


def test_steps_grow_only_where_no_step_that_is_done_would_have_had_another_rate(tmp_path, tokenizer, capsys):
    stable = settings(
        tokenizer, save_every=4, keep=9, optim=dict(lr=1e-2, warmup_steps=2, schedule="linear", decay_steps=3)
    )
    train(stable | dict(steps=9), tmp_path / "long", quiet=True)
    train(stable | dict(steps=7), tmp_path / "short", quiet=True)
    with pytest.raises(ConfigError, match=r"7 of them done.*optim.schedule=.constant., or optim.decay_steps"):
        train(stable | dict(steps=9), tmp_path / "short", quiet=True)
    with checkpoint.manager(tmp_path / "short") as checkpoints:
        checkpoints.delete(7)
    train(stable | dict(steps=9), tmp_path / "short", quiet=True)  # 4 of 7 are done, and 3 go down
    assert dict(losses(tmp_path / "short")) == dict(losses(tmp_path / "long"))
    with pytest.raises(ConfigError, match="fewer than are done"):
        train(stable | dict(steps=8), tmp_path / "short", quiet=True)
    train(stable | dict(steps=9), tmp_path / "short")
    assert "all 9 steps are done" in capsys.readouterr().err
    cosine = settings(tokenizer, optim=dict(lr=1e-2, warmup_steps=2, schedule="cosine"))
    train(cosine | dict(steps=2), tmp_path / "cosine", quiet=True)
    with pytest.raises(ConfigError, match="learning rates of finished steps depend on config.steps"):
        train(cosine | dict(steps=4), tmp_path / "cosine", quiet=True)


@pytest.mark.parametrize(
    "mesh", [dict(fsdp=8), *(pytest.param(m, marks=pytest.mark.slow) for m in (
        dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, context=2), dict(data=4, context=2)))], ids=str)  # fmt: skip
def test_how_a_run_is_computed_may_change_and_is_recorded(mesh, tmp_path, tokenizer):
    # A large eps makes Adam's step as smooth in the gradient as the gradient is in the order of its sums.
    model = MODEL | dict(num_kv_heads=2)
    config = settings(tokenizer, model=model, optim=dict(lr=1e-2, warmup_steps=0, eps=1.0, schedule="constant"))
    config |= dict(mesh=dict(data=8, fsdp=1))
    train(config, tmp_path / "one", quiet=True)
    train(config | dict(steps=2), tmp_path / "two", quiet=True)
    how = dict(model=model | dict(attention="blockwise", remat="full"), mesh=mesh, loss_chunk=64, save_every=1, keep=1)
    train(config | how, tmp_path / "two", quiet=True)
    want, got = dict(losses(tmp_path / "one")), dict(losses(tmp_path / "two"))
    assert want.keys() == got.keys()
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
    rows = [row for row in read_rows(tmp_path / "two" / "metrics.jsonl") if "changed" in row]
    assert [row["step"] for row in rows] == [2] and rows[0]["changed"]["model.remat"] == ["none", "full"]
    assert json.loads((tmp_path / "two" / "config.json").read_text())["steps"] == 6


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path, tokenizer, monkeypatch):
    """The rate is no number from the fourth step on: its loss is still good, its weights are not."""
    known = giraffe_jax.training.optim.learning_rate
    monkeypatch.setattr(
        giraffe_jax.training.optim,
        "learning_rate",
        lambda config, steps: dataclasses.replace(known(config, steps), warmup=3.0, last=math.nan),
    )
    config = settings(tokenizer, steps=7, save_every=1, keep=1)
    with pytest.raises(FloatingPointError) as error:
        train(config, tmp_path, quiet=True)
    assert "step 4: loss is " in str(error.value)
    assert "its update made weights that are not finite" in str(error.value)
    assert "made row 25 of data.sources[0]; made row 26" in str(error.value)
    assert str(error.value).endswith("The last good checkpoint is 3.")
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load(str(tmp_path)).params))


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(tmp_path, tokenizer, monkeypatch):
    batch = giraffe_jax.data.pipeline.Pipeline.batch

    def poisoned(self, step, rows=None):
        found = batch(self, step, rows)
        return found | {"weights": found["weights"] * (np.nan if step == 0 else 1)}

    monkeypatch.setattr(giraffe_jax.data.pipeline.Pipeline, "batch", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 1: loss is nan.*No checkpoint was saved before it"):
        train(settings(tokenizer, steps=4, save_every=1), tmp_path, quiet=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None


def test_small_steps_move_float32_weights_under_bfloat16_compute(tmp_path, tokenizer):
    """At a fine-tuning's rate: rounded to bfloat16, nearly all of these weights would stay where they are."""
    model = MODEL | dict(dtype="bfloat16")
    config = settings(tokenizer, model=model, steps=10, save_every=10, optim=dict(lr=2e-5, warmup_steps=0))
    start = paths(
        place(build(TrainConfig, config), LM(build(ModelConfig, model), None, ByteTokenizer()), make_mesh()).params
    )
    batches = [make_pipeline(build(TrainConfig, config).data, ByteTokenizer()).batch(i) for i in range(10)]
    there = np.unique(np.concatenate([b["tokens"][b["weights"] > 0] for b in batches]))
    trained = paths(train(config, tmp_path, quiet=True).params)
    for name, leaf in trained.items():
        assert leaf.dtype == jnp.float32
        moved, before = np.asarray(leaf), np.asarray(start[name])
        read = np.ones_like(moved, bool)
        if name == "embed/embedding":  # tokens that no document has are not read
            read[np.setdiff1d(np.arange(len(read)), there)] = False
        assert (moved != before)[read].mean() > 0.999, name
    kernel = start["layers/mlp/up/kernel"]
    stayed = (kernel + 2e-5).astype(jnp.bfloat16) == kernel.astype(jnp.bfloat16)
    assert np.mean(stayed) > 0.9  # what the rounding would do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stpes=3), "unknown ['stpes']"),
        (dict(accumulate=3), "config.accumulate 3 does not divide batch_size 8"),
        (dict(steps=0), "config.steps: must be >= 1 and <= 2147483647, got 0"),
        (dict(tokenizer=""), "a run without a source needs a tokenizer's path"),
        (dict(mesh=dict(tensor=3)), "does not divide the 8 devices"),
        (dict(model=MODEL | dict(vocab_size=100)), "model.vocab_size 100 is less than the tokenizer's 258"),
        (dict(model=MODEL | dict(positions=[dict(name="yran", factor=2)])), "unknown method 'yran'"),
        (dict(source="nowhere/at/all"), "nowhere/at/all"),
        (dict(model=MODEL | dict(param_dtype="bfloat16")), "got 'bfloat16', which is for frozen weights"),
        (dict(eval_data=held_out(batch_size=4)), "data x fsdp = 8 does not divide eval_data.batch_size 4"),
        (dict(eval_data=held_out(seq_len=127), mesh=dict(data=4, context=2)), "does not divide eval_data.seq_len 127"),
        (dict(data=held_out(seq_len=127), mesh=dict(data=4, context=2)), "context=2 does not divide data.seq_len 127"),
        (dict(eval_data=held_out(text_weight=0.0, answer_weight=0.0)), "config.eval_data: no token of its first 8"),
    ],
)
def test_wrong_requests_are_refused_before_the_workdir_is_touched(tmp_path, tokenizer, changes, message):
    with pytest.raises((ConfigError, FileNotFoundError)) as error:
        train(settings(tokenizer, **changes), tmp_path / "run", quiet=True)
    assert message in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_bracket_in_the_path_of_the_workdir_is_refused(tmp_path, tokenizer):
    """There orbax commits checkpoints that cannot be restored."""
    with pytest.raises(ConfigError, match=r"has '\[' in its path"):
        train(settings(tokenizer), tmp_path / "run [2]", quiet=True)
    assert not list(tmp_path.rglob("config.json"))


def test_held_out_rows_are_not_those_trained_on_with_the_same_seed(tmp_path, tokenizer, monkeypatch):
    rows = []

    def held_out_loss(config, model, state, pipeline, *_):
        rows.extend(giraffe_jax.data.pipeline.make_pipeline(config.data, ByteTokenizer()).batch(0)["tokens"])
        rows.extend(pipeline.batch(0)["tokens"])
        return 1.0

    monkeypatch.setattr(giraffe_jax.training.loop, "_held_out_loss", held_out_loss)
    data = held_out()
    train(settings(tokenizer, steps=1, data=data, eval_data=data), tmp_path, quiet=True)
    assert len(rows) == 16 and len({tuple(map(int, row)) for row in rows}) == 16


def test_tokens_are_those_read_whatever_they_weigh(tmp_path, tokenizer):
    """As in conversations, where answers alone have weights; padding is not read."""
    data = held_out(batch_size=8, text_weight=0.0, answer_weight=0.01)
    train(settings(tokenizer, steps=2, data=data), tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    pipeline = giraffe_jax.data.pipeline.make_pipeline(
        build(TrainConfig, settings(tokenizer, data=data)).data, ByteTokenizer()
    )
    assert [row["tokens"] for row in rows] == [(pipeline.batch(i)["segments"] > 0).sum() for i in range(2)]
    assert all(pipeline.batch(i)["weights"].sum() < 50 for i in range(2))


def test_loss_and_gradient_do_not_depend_on_the_unit_of_weights(tokenizer):
    """Also where the weights of a batch sum to less than 1, as with answers that weigh 0.01 alone."""
    config = build(TrainConfig, settings(tokenizer))
    model = build(ModelConfig, MODEL)
    whole, measured = batch(), []
    for unit in (1.0, 2.0**-10):
        with jax.set_mesh(make_mesh(config.mesh)):
            params = place(config, LM(model, None, ByteTokenizer()), make_mesh(config.mesh)).params
        weights = whole["weights"] * unit
        update = make_update(config.optim, config.steps)
        _, metrics = train_step(
            init_state(params, config), whole | dict(weights=weights), model.bind(), update, model=model
        )
        measured.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert measured[0][0] > 1
    np.testing.assert_allclose(measured[1], measured[0], rtol=1e-5)


def test_checkpoint_of_another_model_lists_the_difference(tmp_path, tokenizer):
    train(settings(tokenizer, steps=1), tmp_path, quiet=True)
    with checkpoint.manager(tmp_path) as checkpoints:
        saved = checkpoint.saved_tree(checkpoints, 1)["params"]
        want = {**saved, "lm_head": {"weight": jax.ShapeDtypeStruct((3, 3), jnp.float32)}}
        want["norm"] = {"scale": jax.ShapeDtypeStruct((99,), jnp.float32)}
        lines = checkpoint.compare_trees(saved, want)
    assert lines == [
        "  missing: lm_head/weight (3, 3)",
        "  extra:   lm_head/kernel (16, 258)",
        "  shape:   norm/scale is (16,), wanted (99,)",
    ]


def test_one_compilation_for_all_frequency_methods(traces):
    model = build(ModelConfig, MODEL)
    config = build(TrainConfig, dict(data=dict(sources=[dict(kind="synthetic")], seq_len=16, batch_size=4), steps=5))
    from giraffe_jax.model import init_params

    seen, counts, update = traces(giraffe_jax.training.step, "Llama"), [], make_update(config.optim, 5)
    for scaling in (
        [],
        [dict(name="linear", factor=2.0)],
        [dict(name="yarn", factor=4.0)],
        [dict(name="ntk", factor=2.0)],
    ):
        state = init_state(init_params(model, jax.random.key(0)), config)
        train_step(state, batch(), model.bind(scaling=scaling), update, model=model)
        counts.append(len(seen))
    assert set(counts) == {1}


def test_mesh_config_is_part_of_the_config():
    assert build(TrainConfig, dict(data=dict(sources=[], seq_len=1, batch_size=1), steps=1)).mesh == MeshConfig()
    assert dataclasses.asdict(MeshConfig()) == dict(data=1, fsdp=-1, context=1, tensor=1)
