"""A run's adapter out as PEFT's and in again: the same weights, with the base as it was; or refused with the reason."""

import json

import jax
import numpy as np
import pytest
from hf_models import random_tensors, write
from safetensors.numpy import load_file

from giraffe_jax import cli, hf
from giraffe_jax.config import ConfigError
from giraffe_jax.loading import load
from giraffe_jax.model import lora
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.loop import train
from tests.close import close

SHAPE = dict(
    model_type="llama", vocab_size=258, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
)  # fmt: skip


def trained(base, config, positions=None, seed=0):
    """What a run on a base would have: random A and B, and moved norms and embeddings where it trains these."""
    lm = load(str(base), {} if positions is None else {"positions": positions}, tokenizer="")
    params = lora.add(lm.params, config, jax.random.key(seed))
    chosen = lora.trainable(params, config)

    def move(path, x, moves):
        step = 0.1 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
        return x + step if moves else x

    return lm, jax.tree_util.tree_map_with_path(move, params, chosen)


def base_of(tmp_path, tied=False, **changes):
    directory = write(tmp_path / "base", random_tensors(tied=tied, c=SHAPE), SHAPE, tie_word_embeddings=tied, **changes)
    for name, content in ByteTokenizer().files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=3, alpha=7.0, targets=("q", "v"), train=()),
        LoraConfig(rank=2, targets=("q", "k", "v", "o", "gate", "up", "down"), train=("norm", "embed")),
    ],
)
def test_out_and_in_again_is_the_merged_model(tmp_path, tied, config):
    base = base_of(tmp_path, tied)
    lm, params = trained(base, config)
    about = hf.save_adapter(params, lm.config, config, str(base), lm.tokenizer, tmp_path / "out")
    again, want = hf.load(tmp_path / "out"), paths(lora.merge(params))
    assert again.config == lm.config and again.tokenizer is not None
    got = paths(again.params)
    assert got.keys() == want.keys()
    for name in want:
        close(got[name], want[name], ulps=64, what=name)
    assert (
        about["base_model_name_or_path"] == str(base) and about["lora_alpha"] / about["r"] == config.alpha / config.rank
    )
    assert sorted(about["modules_to_save"] or []) == (
        ["embed_tokens", "input_layernorm", *["lm_head"] * tied, "norm", "post_attention_layernorm"]
        if config.train
        else []
    )
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    np.testing.assert_array_equal(written[name], params["layers"]["attention"]["v"]["lora"]["a"][1].T)
    assert written[name.replace("_A", "_B")].shape == (8, config.rank)
    assert not (tmp_path / "out" / "base_config.json").exists()


def test_an_adapter_goes_on_training_with_its_own_a_and_b(tmp_path):
    base, config = base_of(tmp_path), LoraConfig(rank=3, alpha=7.0, targets=("q", "o", "down"), train=("norm",))
    lm, params = trained(base, config)
    hf.save_adapter(params, lm.config, config, str(base), lm.tokenizer, tmp_path / "out")
    again = load(str(tmp_path / "out"), adapters=config)
    kept = lora.add(again.params, config, jax.random.key(9))
    jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=4), r"lora.rank is 4, its rank 3; set that"),
        (dict(targets=("q",)), r"lora.targets is \('q',\), it has \('q', 'o'\); set that"),
        (dict(alpha=8.0), r"lora.alpha 8 over rank 3 is 2.66667, its scale is 2.33333: set lora.alpha=7.0"),
    ],
)
def test_training_on_what_config_lora_does_not_describe_is_refused(tmp_path, changes, message):
    base, config = base_of(tmp_path), dict(rank=3, alpha=7.0, targets=("q", "o"), train=())
    lm, params = trained(base, LoraConfig(**config))
    hf.save_adapter(params, lm.config, LoraConfig(**config), str(base), lm.tokenizer, tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        load(str(tmp_path / "out"), adapters=LoraConfig(**(config | changes)))


def test_positions_are_written_for_the_base_and_read_with_the_adapter(tmp_path):
    base, config = base_of(tmp_path), LoraConfig(rank=2, train=())
    lm, params = trained(base, config, positions=[dict(name="linear", factor=4.0)])
    hf.save_adapter(params, lm.config, config, str(base), lm.tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "base_config.json").read_text())
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 4.0} and written["hidden_size"] == 16
    assert (
        hf.read_config(tmp_path / "out").positions == lm.config.positions == hf.load(tmp_path / "out").config.positions
    )


def test_what_peft_or_the_base_cannot_say_is_refused(tmp_path):
    base, config = base_of(tmp_path), LoraConfig(rank=2, train=())
    lm, params = trained(base, config)
    other = write(tmp_path / "other", random_tensors(seed=1, c=SHAPE), SHAPE)

    def save(lm=lm, base=base, params=params, **settings):
        hf.save_adapter(params, lm.config, config, str(base), None, tmp_path / "out", **settings)

    with pytest.raises(ConfigError, match=r"base: model.layers.0.self_attn.q_proj.weight is not that of .*other"):
        save(base=other)
    with pytest.raises(
        ConfigError, match=r"base: .*base is another model: model.embed_tokens.weight is \[258, 16\], here"
    ):
        mini = load("giraffe-mini")
        save(lm=mini, params=lora.add(mini.params, config, jax.random.key(0)))
    with pytest.raises(ConfigError, match="alibi cannot be exported"):
        save(lm=trained(base, config, positions=[dict(name="alibi")])[0])
    huge = jax.tree.map(lambda x: x, params)
    huge["layers"]["attention"]["q"]["lora"]["a"] = huge["layers"]["attention"]["q"]["lora"]["a"].at[0, 0, 0].set(1e5)
    with pytest.raises(
        ConfigError, match=r"dtype: base_model.model.*q_proj.lora_A.weight has numbers that float16 can"
    ):
        save(params=huge, dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "other"]


def test_a_run_exports_its_adapter_and_another_run_goes_on_from_it(tmp_path, capsys):
    """By the commands: trained on a base with other positions, out, in and merged, and trained on."""
    base = base_of(tmp_path)
    data = dict(seq_len=80, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(min_len=70))])
    config = dict(source=str(base), model=dict(positions=[dict(name="linear", factor=2.0)]), data=data, steps=2)
    config |= dict(lora=dict(rank=2, targets=("q", "down"), train=("norm",)), optim=dict(lr=1e-2, warmup_steps=0))
    done = train(config, tmp_path / "run", quiet=True)
    out = tmp_path / "adapter"
    assert cli.main(["export", str(tmp_path / "run"), str(out), "--adapter"]) == 0
    said = capsys.readouterr().out
    assert "adapter of rank 2 for q_proj, down_proj, input_layernorm, norm, post_attention_layernorm whole" in said
    assert f"its base: {base}" in said and "rope_type linear" in said and "Load the base with base_config.json" in said
    merged = load(str(out))
    assert merged.config.positions == done.config.positions
    for name, value in paths(done.params).items():
        close(paths(merged.params)[name], value, ulps=64, what=name)
    onward = config | dict(source=str(out), base=str(base), model={})
    train(onward, tmp_path / "onward", quiet=True)
    assert cli.main(["export", str(tmp_path / "onward@2"), str(tmp_path / "second"), "--adapter"]) == 0
    first, second = (load_file(path / "adapter_model.safetensors") for path in (out, tmp_path / "second"))
    assert first.keys() == second.keys()
    moved = {name: np.abs(first[name] - second[name]).max() for name in first}
    assert 0 < max(moved.values()) < 0.1  # two steps from where it was, not from other random numbers
    assert cli.main(["export", str(out), str(tmp_path / "merged"), f"--base={base}"]) == 0
    for name, value in paths(hf.load(tmp_path / "merged").params).items():
        np.testing.assert_array_equal(value, paths(merged.params)[name])
    capsys.readouterr()
    for source, message in (
        (str(base), "is not the workdir of a training run, so it has no adapter"),
        (str(tmp_path / "onward"), "--gain-in-weights, which changes the base"),
    ):
        flags = ["--adapter", *["--gain-in-weights"] * ("onward" in source)]
        assert cli.main(["export", source, str(tmp_path / "no"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["import", str(base), str(tmp_path / "imported")]) == 0
    file = tmp_path / "onward" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(source=str(tmp_path / "run"), base=None)))
    for run, message in (
        ("imported", "was trained without adapters"),
        ("onward", "PEFT needs its weights as a Hugging"),
    ):
        assert cli.main(["export", str(tmp_path / run), str(tmp_path / "no"), "--adapter"]) == 2
        assert message in capsys.readouterr().err
