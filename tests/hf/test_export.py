"""Out and in again, bit for bit, complete or not at all."""

import dataclasses
import json
import os
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import random_tensors, write

from giraffe_jax import hf
from giraffe_jax.config import ConfigError
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import names
from giraffe_jax.tokenizer import ByteTokenizer
from tests.close import close

BYTES = dict(
    model_type="llama", vocab_size=258, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    return hf.load(write(tmp_path / "in", random_tensors()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
def test_out_and_in_again_bit_for_bit(tmp_path, checkpoint, dtype, shard_bytes):
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), checkpoint.params)
    out = hf.save(checkpoint.params, checkpoint.config, None, tmp_path / "out", dtype=dtype, shard_bytes=shard_bytes)
    again = hf.load(out)
    assert again.config == checkpoint.config and again.tokenizer is None
    jax.tree.map(np.testing.assert_array_equal, rounded, again.params)
    assert (out / "model.safetensors.index.json").is_file() == (shard_bytes < 10**9)


def test_files_have_the_permissions_that_the_umask_says(tmp_path, checkpoint):
    before = os.umask(0o027)
    try:
        out = hf.save(checkpoint.params, checkpoint.config, None, tmp_path / "out", shard_bytes=10_000)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o750
    modes = {file.name: file.stat().st_mode & 0o777 for file in out.iterdir()}
    assert len(modes) > 3 and set(modes.values()) == {0o640}, modes


def test_file_holds_exactly_the_tensors_it_came_from(tmp_path, checkpoint):
    from safetensors.numpy import load_file

    out = hf.save(checkpoint.params, checkpoint.config, None, tmp_path / "out", dtype="float32")
    written, original = load_file(out / "model.safetensors"), random_tensors()
    assert written.keys() == original.keys()
    for name in original:
        np.testing.assert_array_equal(written[name], original[name])
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4} and config["rope_theta"] == 1e4


def test_the_tokenizer_goes_with_it(tmp_path):
    c = hf.load(write(tmp_path / "in", random_tensors(c=BYTES), BYTES))
    out = hf.save(c.params, c.config, ByteTokenizer(), tmp_path / "out")
    again = hf.load(out)
    assert again.tokenizer is not None
    assert again.tokenizer.encode("Zürich 🦒") == list("Zürich 🦒".encode())
    assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (256, 257)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 257


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, checkpoint, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: exists already; nothing is overwritten"):
        hf.save(checkpoint.params, checkpoint.config, None, target)
    assert [p.name for p in target.iterdir()] == ["precious.txt"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        hf.save(checkpoint.params, checkpoint.config, None, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


STATIC = [
    n for n in names() if import_module(f"giraffe_jax.positions.methods.{n}").ABOUT["export"] in ("native", "longrope")
]


@pytest.mark.parametrize("name", STATIC)
def test_what_is_listed_as_exportable_comes_back_with_the_same_frequencies(name):
    """Through config.json, which is parsed again as any Hugging Face config; zeros come back as less than 1e-29."""
    example = [dict(name=name, **import_module(f"giraffe_jax.positions.methods.{name}").EXAMPLE)]
    config = ModelConfig(
        vocab_size=8, d_model=8, d_mlp=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, original_len=32,
        positions=(dict(name="randomize"), *example),
    )  # fmt: skip
    again = hf.config_from_json(json.loads(json.dumps(hf.config_to_json(config))))
    for length in (16, 32, 100):
        want, got = config.bind(length), again.bind(length)
        np.testing.assert_allclose(got.inv_freq, want.inv_freq, rtol=3e-7, atol=1e-29)
        close(got.gain, want.gain)


@pytest.mark.parametrize("name", ["rerope", "logn", "xpos", "alibi", "sliding_window", "nope_layers", "dynamic_yarn"])
def test_what_no_table_of_frequencies_can_say_is_refused(name):
    example = dict(name=name, **import_module(f"giraffe_jax.positions.methods.{name}").EXAMPLE)
    config = ModelConfig(
        vocab_size=8, d_model=8, d_mlp=8, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=8, original_len=32,
        positions=(example,),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=f"{name} cannot be exported: Hugging Face's Llama supports only frequencies"):
        hf.config_to_json(config)


def test_parameters_that_do_not_fit_the_config_are_named(tmp_path, checkpoint):
    params = jax.tree.map(lambda x: x, checkpoint.params)
    params["norm"]["scale"] = jnp.zeros(31)
    with pytest.raises(ConfigError, match=r"params: norm/scale has shape \(31,\), the config says \(32,\)"):
        hf.save(params, checkpoint.config, None, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"qk_norm: Hugging Face's Llama does not normalise"):
        hf.config_to_json(dataclasses.replace(checkpoint.config, qk_norm=True))
    with pytest.raises(ConfigError, match=r"dtype must be bfloat16, float16 or float32, got 'int8'"):
        hf.save(checkpoint.params, checkpoint.config, None, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()
