"""Adapters: against the dense matrices they stand for, what they leave alone, and through checkpoint and export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax import checkpoint, hf
from giraffe_jax.config import ConfigError, build
from giraffe_jax.loading import load
from giraffe_jax.model import Llama, ModelConfig, init_params, lora, unembedding
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.ops.loss import next_token_loss
from giraffe_jax.sharding import MeshConfig, make_mesh, paths
from giraffe_jax.tokenizer import load_tokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import losses, place, train
from giraffe_jax.training.step import init_state, make_update, train_step
from tests.close import close
from tests.training.test_train import MODEL, batch, settings

ALL = ("q", "k", "v", "o", "gate", "up", "down")
CONFIG = build(ModelConfig, MODEL)


def adapted(config=LoraConfig(rank=3, targets=ALL), model=CONFIG, filled=True):
    """Random parameters with adapters, whose B is random too if filled."""
    params = lora.add(init_params(model, jax.random.key(0)), config, jax.random.key(1))

    def fill(path, x):
        return 0.1 * jax.random.normal(jax.random.key(len(str(path))), x.shape) if path[-1].key == "b" else x

    return jax.tree_util.tree_map_with_path(fill, params) if filled else params


def loss(params, data=None, model=CONFIG):
    data = batch() if data is None else data
    hidden, _ = Llama(model).apply({"params": params}, data["tokens"], model.bind().at(data["positions"]))
    return next_token_loss(hidden, unembedding(params), data["targets"], data["weights"])[0] / data["weights"].sum()


def test_what_moves_is_counted_by_group():
    """CONFIG: 2 layers of width 16, 258 tokens, counted by hand."""
    config = LoraConfig(rank=3, targets=("q", "o"))
    params = adapted(config)
    moving, _ = lora.split(params, lora.trainable(params, config))
    c, width = CONFIG, CONFIG.num_heads * CONFIG.head_dim
    adapters = c.num_layers * 2 * 3 * (c.d_model + width)
    norms = (2 * c.num_layers + 1) * c.d_model
    want = {"adapters": adapters, "embedding": c.vocab_size * c.d_model, "norms": norms}
    assert lora.by_group(moving) == want and list(lora.by_group(moving)) == list(want)
    alone, _ = lora.split(params, lora.trainable(params, LoraConfig(rank=3, targets=("q", "o"), train=())))
    assert lora.by_group(alone) == {"adapters": adapters}
    whole = lora.by_group(init_params(CONFIG, jax.random.key(0)) | {"positions": {"log_ratio": np.zeros(4)}})
    assert whole["MLP"] == c.num_layers * 3 * c.d_model * c.d_mlp and whole["frequencies"] == 4
    assert whole["attention"] == c.num_layers * 2 * c.d_model * (width + c.num_kv_heads * c.head_dim)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1152, "1,152"),
        (52_000, "0.05 M"),
        (921_600, "0.92 M"),
        (28_311_552, "28.3 M"),
        (6_738_415_616, "6.74 B"),
    ],
)
def test_counts_in_words(count, text):
    assert lora.count_in_words(count) == text


def test_fresh_adapters_change_nothing():
    plain = init_params(CONFIG, jax.random.key(0))
    np.testing.assert_array_equal(loss(adapted(filled=False)), loss(plain))


def test_merged_equals_unmerged_and_is_the_matrix_of_the_paper():
    params = adapted()
    merged = lora.merge(params)
    assert not lora.has_adapters(merged) and lora.has_adapters(params)
    assert abs(loss(params) - loss(merged)) < 1e-5
    assert abs(loss(params) - loss(init_params(CONFIG, jax.random.key(0)))) > 1e-3
    for part, name, rows in (("attention", "q", 16), ("attention", "o", 16), ("mlp", "down", 16)):
        weights = jax.tree.map(lambda x: np.asarray(x, np.float64), params["layers"][part][name])
        for layer in range(2):
            w, a, b = weights["kernel"][layer], weights["lora"]["a"][layer], weights["lora"]["b"][layer]
            want = w.reshape(rows, -1) + 16 / 3 * a.reshape(rows, 3) @ b.reshape(3, -1)
            got = merged["layers"][part][name]["kernel"][layer].reshape(rows, -1)
            close(got, want, ulps=256)


def test_gradient_is_the_merged_matrices_by_the_chain_rule():
    """dA = scale dW B^T and dB = scale A^T dW, with dW of the model whose kernels are merged."""
    params = adapted()
    d_adapter = jax.grad(loss)(params)["layers"]["attention"]["q"]["lora"]
    d_kernel = jax.grad(loss)(lora.merge(params))["layers"]["attention"]["q"]["kernel"].reshape(2, 16, 16)
    a, b = (params["layers"]["attention"]["q"]["lora"][x] for x in "ab")
    b = b.reshape(2, 3, 16)
    close(d_adapter["a"], 16 / 3 * d_kernel @ b.swapaxes(1, 2), ulps=1024)
    close(d_adapter["b"].reshape(2, 3, 16), 16 / 3 * a.swapaxes(1, 2) @ d_kernel, ulps=1024)


@pytest.mark.parametrize("train_too", [(), ("norm", "embed")])
def test_a_step_moves_what_is_trained_and_nothing_else_has_state(train_too):
    adapters = LoraConfig(rank=2, targets=("q", "v"), train=train_too)
    config = build(TrainConfig, dict(data=dict(sources=[], seq_len=16, batch_size=4), steps=3, lora=adapters,
                                     optim=dict(lr=1e-2, warmup_steps=0)))  # fmt: skip
    model = build(ModelConfig, MODEL | dict(param_dtype="bfloat16"))
    start = adapted(adapters, model, filled=False)
    state = init_state(jax.tree.map(jnp.copy, start), config)
    for _ in range(2):
        state, _ = train_step(state, batch(), model.bind(), make_update(config.optim, 3, config.lora), model=model)
    before, after = paths(start), paths(state.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    wanted = {name for name in before if "/lora/" in name and not name.endswith("scale")}
    if train_too:
        wanted |= {name for name in before if "norm" in name or name == "embed/embedding"}
    assert moved == wanted
    assert {str(after[name].dtype) for name in wanted} == {"float32"}
    assert str(after["layers/attention/q/kernel"].dtype) == "bfloat16"
    moments = {name: x for name, x in paths(state.opt_state).items() if x.ndim}
    assert {name.split("/mu/")[-1] for name in moments if "/mu/" in name} == wanted
    assert sum(x.nbytes for x in moments.values()) == 2 * 4 * sum(after[name].size for name in wanted)


def test_accumulated_and_split_steps_are_the_plain_one(tokenizer):
    adapters = LoraConfig(rank=2, targets=ALL)
    smooth = dict(lr=1e-1, warmup_steps=0, eps=1.0)  # so that rounding does not decide a step's sign
    config = build(TrainConfig, settings(tokenizer, lora=adapters, optim=smooth))
    loaded = load("giraffe-mini")
    states = []
    for sizes, accumulate in ((MeshConfig(data=8, fsdp=1), 1), (MeshConfig(fsdp=4, tensor=2), 2)):
        mesh = make_mesh(sizes)
        with jax.set_mesh(mesh):
            state = place(config, loaded, mesh)
            update, args = make_update(config.optim, 6, adapters), dict(model=loaded.config, accumulate=accumulate)
            states.append(train_step(state, batch(8, 16), loaded.config.bind(), update, **args))
    (one, metrics), (split, split_metrics) = states
    close(metrics["grad_norm"], split_metrics["grad_norm"], ulps=1024)
    assert split.params["layers"]["mlp"]["up"]["lora"]["b"].sharding.spec[-1] == "tensor"
    for name, leaf in paths(split.params).items():
        close(np.asarray(leaf, np.float32), np.asarray(paths(one.params)[name], np.float32), ulps=1024, what=name)


def test_a_run_resumes_loads_merged_and_exports(tmp_path, tokenizer, capsys):
    config = settings(tokenizer, source="giraffe-mini", model={}, tokenizer="", steps=4, save_every=2,
                      lora=dict(rank=2), optim=dict(lr=1e-3, warmup_steps=0))  # fmt: skip
    whole = train(config, tmp_path / "whole", quiet=True)
    train(config, tmp_path / "run")
    c = load("giraffe-mini").config
    embedding, norms = c.vocab_size * c.d_model, (2 * c.num_layers + 1) * c.d_model
    width = c.d_model + c.num_heads * c.head_dim
    adapters = c.num_layers * 2 * (2 * width + (2 * c.d_model + 2 * c.num_kv_heads * c.head_dim))  # q and o, k and v
    groups = zip(
        ("adapters", "embedding", "norms"), map(lora.count_in_words, (adapters, embedding, norms)), strict=True
    )
    said = f"trained: {adapters + embedding + norms:,} parameters: {', '.join(' '.join(group) for group in groups)}\n"
    assert said in capsys.readouterr().err
    with checkpoint.manager(tmp_path / "run", keep=2) as checkpoints:
        checkpoints.delete(4)
    train(config, tmp_path / "run", quiet=True)
    assert list(losses(tmp_path / "run")) == list(losses(tmp_path / "whole"))
    loaded = load(str(tmp_path / "run"))
    assert not lora.has_adapters(loaded.params)
    for name, leaf in paths(loaded.params).items():
        close(leaf, paths(whole.params)[name], ulps=1024, what=name)
    hf.save(loaded.params, loaded.config, loaded.tokenizer, tmp_path / "hf", dtype="float32")
    exported = hf.load(tmp_path / "hf")
    before = load("giraffe-mini")
    data = jax.tree.map(lambda x: x, batch())
    assert abs(loss(exported.params, data, before.config) - loss(loaded.params, data, before.config)) < 1e-6
    assert abs(loss(before.params, data, before.config) - loss(loaded.params, data, before.config)) > 1e-4
    assert load_tokenizer(tmp_path / "hf").vocab_size == loaded.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=0), "lora.rank: must be >= 1"),
        (dict(targets=("x",)), "allowed are 'q', 'k'"),
        (dict(targets=()), "name at least one of q, k, v, o, gate, up, down"),
        (dict(train=("norms",)), "Did you mean 'norm'"),
    ],
)
def test_wrong_adapters_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as error:
        build(LoraConfig, changes, "lora")
    assert message in str(error.value)
