"""GGUF out: what is read back, by our reader and by llama.cpp itself, is what was written."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from hf_models import CONFIG, our_logits, random_tensors, write

from giraffe_jax import hf
from giraffe_jax.cli import llama_cpp
from giraffe_jax.config import ConfigError
from giraffe_jax.model import ModelConfig
from giraffe_jax.sharding import paths
from tests.close import close

gguf = pytest.importorskip("gguf")

WIDE = CONFIG | dict(hidden_size=256, intermediate_size=256, num_hidden_layers=2, vocab_size=96)
METHODS = {
    "plain": [],
    "ntk": [dict(name="ntk", factor=4.0)],
    "linear": [dict(name="linear", factor=4.0)],
    "yarn": [dict(name="yarn", factor=4.0)],
    "mrrope": [dict(name="mrrope", factor=4.0)],
    "truncate": [dict(name="truncate", cutoff_len=64.0)],
    "nope": [dict(name="nope")],
    "yarn, resonance, scale": [
        dict(name="yarn", factor=2.0),
        dict(name="resonance"),
        dict(name="scale", value=1.3),
    ],
    "pose": [dict(name="pose", target_len=256), dict(name="linear", factor=4.0)],  # training's alone is left out
}


def model(tmp_path, positions=(), tied=False, **changes):
    c = WIDE | dict(tie_word_embeddings=tied)
    lm = hf.load(write(tmp_path / "hf", random_tensors(tied=tied, c=c), c))
    return dataclasses.replace(lm, config=dataclasses.replace(lm.config, positions=tuple(positions), **changes))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_bit_for_bit(tmp_path, tied):
    lm = model(tmp_path, tied=tied)
    back = hf.load(hf.save_gguf(lm.params, lm.config, None, tmp_path / "a.gguf"))
    assert back.config == lm.config and back.tokenizer is None
    for name, x in paths(back.params).items():
        np.testing.assert_array_equal(x, paths(lm.params)[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_numbers_are_the_rounded_ones_and_norms_stay(tmp_path, dtype):
    lm = model(tmp_path)
    back = paths(hf.load(hf.save_gguf(lm.params, lm.config, None, tmp_path / "a.gguf", dtype=dtype)).params)
    for name, x in paths(lm.params).items():
        want = x if "norm" in name else x.astype(dtype).astype("float32")
        np.testing.assert_array_equal(back[name], want, err_msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_positions_come_back_as_frequencies_and_their_gain_in_the_query_map(tmp_path, name):
    lm = model(tmp_path, METHODS[name])
    back = hf.load(hf.save_gguf(lm.params, lm.config, None, tmp_path / "a.gguf"))
    want, got = lm.config.bind(64.0), back.config.bind(64.0)
    np.testing.assert_allclose(got.inv_freq, want.inv_freq, rtol=3e-7, atol=1e-29)
    assert float(got.gain) == 1.0
    queries = [np.asarray(x.params["layers"]["attention"]["q"]["kernel"]) for x in (lm, back)]
    np.testing.assert_allclose(queries[1], queries[0] * float(want.gain) ** 2, rtol=2e-7)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 60))
    # Two ways to round a gain's square, through two layers of large weights; a gain that is missing shows at 0.1.
    close(our_logits(back, tokens), our_logits(lm, tokens), ulps=1000)


def test_what_llama_cpp_cannot_compute_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "out" / "a.gguf"
    path.parent.mkdir()
    lm = model(tmp_path)
    for method in (dict(name="rerope", window=16), dict(name="dynamic", factor=2.0), dict(name="logn")):
        config = dataclasses.replace(lm.config, positions=(method,))
        with pytest.raises(ConfigError, match=f"{method['name']} cannot be exported: llama.cpp's Llama supports"):
            hf.save_gguf(lm.params, config, None, path)
    with pytest.raises(ConfigError, match="qk_norm"):
        hf.save_gguf(lm.params, dataclasses.replace(lm.config, qk_norm=True), None, path)
    with pytest.raises(ConfigError, match="dtype must be"):
        hf.save_gguf(lm.params, lm.config, None, path, dtype="int8")
    with pytest.raises(ConfigError, match="is not a directory"):
        hf.save_gguf(lm.params, lm.config, None, tmp_path / "none" / "a.gguf")
    assert not list(path.parent.iterdir())
    path.write_text("mine")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        hf.save_gguf(lm.params, lm.config, None, path)
    assert path.read_text() == "mine"


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    lm = model(tmp_path)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="No space left"):
        hf.save_gguf(lm.params, lm.config, None, tmp_path / "a.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_the_gain_goes_into_the_weights_of_a_directory_too(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 96, (2, 60))
    for name, kind in (("yarn", "yarn"), ("mrrope", "longrope"), ("linear", "linear")):
        lm = model(tmp_path / name, METHODS[name])
        out = hf.save(lm.params, lm.config, None, tmp_path / name / "o", dtype="float32", gain_in_weights=True)
        rope = json.loads((out / "config.json").read_text())["rope_parameters"]
        assert rope["rope_type"] == kind and rope.get("attention_factor", 1.0) == 1.0
        assert {rope[k] for k in ("short_mscale", "long_mscale") if k in rope} <= {1.0}
        back = hf.load(out)
        assert float(back.config.bind(64.0).gain) == 1.0
        close(our_logits(back, tokens), our_logits(lm, tokens), ulps=1000)


needs_llama_cpp = pytest.mark.skipif(not llama_cpp.installed(), reason="llama.cpp: pip install xllamacpp")


@pytest.mark.oracle
@needs_llama_cpp
def test_llama_cpp_reads_positions_as_we_do(tmp_path):
    """giraffe-mini at three times its 256 tokens, where methods differ many times more than the 1% that is allowed
    (llama.cpp's cache holds half-precision numbers)."""
    from pydoc_data.topics import topics

    lm = hf.load("giraffe-mini")
    ids = lm.tokenizer.encode(topics["lambda"] + topics["class"] + topics["function"])[:768]
    found = {}
    for name in ("plain", "ntk", "linear", "yarn", "mrrope", "yarn, resonance, scale"):
        config: ModelConfig = dataclasses.replace(lm.config, positions=tuple(METHODS[name]))
        path = hf.save_gguf(lm.params, config, None, tmp_path / f"{name.replace(', ', '-')}.gguf")
        theirs = llama_cpp.compute(path, rows=[ids])[1][0].mean()
        ours = float(dataclasses.replace(lm, config=config).score(ids).nll.mean())
        found[name] = ours, theirs
    print({k: tuple(np.exp(v).round(4)) for k, v in found.items()})
    for name, (ours, theirs) in found.items():
        assert abs(np.exp(theirs - ours) - 1) < 0.01, (name, np.exp([ours, theirs]))
    perplexities = sorted(np.exp(ours) for ours, _ in found.values())
    assert all(b / a > 1.01 for a, b in itertools.pairwise(perplexities)), perplexities  # no two could be confused


@pytest.mark.oracle
@needs_llama_cpp
def test_llama_cpp_reads_smollm2_and_its_tokenizer_as_we_do(tmp_path):
    try:
        lm = hf.load("smollm2")
    except ConfigError as e:
        pytest.skip(str(e))
    assert lm.tokenizer is not None
    path = hf.save_gguf(lm.params, lm.config, lm.tokenizer, tmp_path / "s.gguf")
    texts = ["Hello world, it is 2026!\n\n  the end", "naïve café — 10,000 ✓\t<|im_start|>user", "don't  we'll x=1e-5;"]
    ids = lm.tokenizer.encode(" ".join(texts) * 6)
    got, (losses,) = llama_cpp.compute(path, texts, [ids])
    assert got == [lm.tokenizer.encode(t) for t in texts]
    assert abs(np.exp(losses.mean() - float(lm.score(ids).nll.mean())) - 1) < 0.01


def test_parameters_that_are_not_the_configs_are_refused(tmp_path):
    lm = model(tmp_path)
    wrong = jax.tree.map(lambda x: x, lm.params)
    wrong["norm"]["scale"] = wrong["norm"]["scale"][:-1]
    with pytest.raises(ConfigError, match="norm/scale has shape"):
        hf.save_gguf(wrong, lm.config, None, tmp_path / "a.gguf")
