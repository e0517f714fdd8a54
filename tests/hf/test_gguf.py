"""GGUF in: numbers as the gguf library dequantises them, query and key rows back in half-split order."""

import os
import struct

import numpy as np
import pytest
from hf_models import CONFIG, our_logits, random_tensors, write

from giraffe_jax import hf
from giraffe_jax.config import ConfigError, to_dict
from giraffe_jax.positions import frequencies
from tests.close import close, decided

gguf = pytest.importorskip("gguf")

SMOLLM2 = os.environ.get("GIRAFFE_SMOLLM2", "")
WIDE = CONFIG | dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=20)
TOKENS = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(17))]
ROWS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama_cpp_name(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{ROWS[rest]}.weight"
    return f"{ROWS[stem]}.weight"


def interleave(rows, num_heads):
    """llama.cpp's order, row by row: within a head, row i of the first half goes to 2i, of the second to 2i + 1."""
    out = np.empty_like(rows)
    width = rows.shape[0] // num_heads
    for head in range(num_heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = rows[head * width + i]
            out[head * width + 2 * i + 1] = rows[head * width + width // 2 + i]
    return out


def write_gguf(path, tensors, c, kind=None, extra=(), keys=(), architecture="llama", tokens=TOKENS):
    """Writes a checkpoint; `kind` quantises the matrices, `extra` are further tensors, `keys` further header keys."""
    w = gguf.GGUFWriter(str(path), architecture)
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_vocab_size(c["vocab_size"])
    for name, value in keys:
        (w.add_string if isinstance(value, str) else w.add_float32)(f"{architecture}.{name}", value)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    w.add_token_merges(["a b"] if "ab" in tokens else [])
    w.add_bos_token_id(1)
    for name, values in tensors.items():
        if "q_proj" in name:
            values = interleave(values, c["num_attention_heads"])
        if "k_proj" in name:
            values = interleave(values, c["num_key_value_heads"])
        if kind is None or values.ndim == 1:
            w.add_tensor(llama_cpp_name(name), values)
        else:
            data = gguf.quants.quantize(values, kind)
            w.add_tensor(llama_cpp_name(name), data, raw_dtype=kind)
    for name, values in extra:
        w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_equals_the_directory_it_was_made_from(tmp_path, tied):
    import jax

    c = WIDE | dict(tie_word_embeddings=tied)
    tensors = random_tensors(tied=tied, c=c)
    ours = hf.load(write_gguf(tmp_path / "a.gguf", tensors, c))
    theirs = hf.load(write(tmp_path / "a", tensors, c))
    assert ours.config == theirs.config
    same(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params))
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    assert ours.tokenizer is not None and ours.tokenizer.bos_id == 1 and ours.tokenizer.decode([3, 4]) == "ab"
    tokens = np.arange(12)[None] % 20
    np.testing.assert_array_equal(our_logits(ours, tokens), our_logits(theirs, tokens))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_numbers_are_the_librarys(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    tensors = random_tensors(c=WIDE)
    c = hf.load(write_gguf(tmp_path / "a.gguf", tensors, WIDE, kind))
    name = "model.layers.0.mlp.down_proj.weight"
    expected = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], kind), kind)
    np.testing.assert_array_equal(c.params["layers"]["mlp"]["down"]["kernel"][0], expected.T)
    assert 0 < np.abs(expected - tensors[name]).max() < 0.2
    # Rows are quantised each by itself, so that putting them back in order commutes with it.
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], kind), kind)
    got = np.asarray(c.params["layers"]["attention"]["q"]["kernel"][0])
    np.testing.assert_array_equal(got, expected.reshape(4, 64, 256).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block, width = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (256, 256 // block * width), np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    raw[:, {"Q2_K": -4, "Q3_K": -2, "Q4_K": 0, "Q5_K": 0, "Q6_K": -2}[kind.name] :][:, :2] = scale
    if kind.name in ("Q2_K", "Q4_K", "Q5_K"):
        raw[:, {"Q2_K": -2, "Q4_K": 2, "Q5_K": 2}[kind.name] :][:, :2] = scale
    tensors = random_tensors(c=WIDE)
    name = "model.layers.0.mlp.up_proj.weight"
    path = tmp_path / "a.gguf"
    one = tensors.pop(name)
    assert one.shape == (256, 256)

    up = hf.load(write_with_raw(path, tensors, llama_cpp_name(name), raw, kind)).params["layers"]["mlp"]["up"][
        "kernel"
    ][0]
    np.testing.assert_array_equal(up, gguf.quants.dequantize(raw, kind).T)


def write_with_raw(path, tensors, name, raw, kind):
    original = gguf.GGUFWriter.write_header_to_file

    def with_raw(self, *args, **kwargs):
        self.add_tensor(name, raw, raw_dtype=kind)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(gguf.GGUFWriter, "write_header_to_file", with_raw)
        return write_gguf(path, tensors, WIDE)


def test_rope_freqs_become_llama3_or_longrope(tmp_path):
    tensors = random_tensors(c=WIDE)
    c = WIDE | dict(rope_theta=5e5, max_position_embeddings=131072)
    plain, _ = frequencies((), head_dim=64, theta=5e5, original_len=8192.0)
    llama3 = dict(name="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
    scaled, _ = frequencies([llama3], head_dim=64, theta=5e5, original_len=8192.0)
    divisors = (plain / scaled).astype(np.float32)
    got = hf.load(write_gguf(tmp_path / "a.gguf", tensors, c, extra=[("rope_freqs.weight", divisors)])).config
    assert to_dict(got.positions) == [llama3] and got.original_len == 8192
    odd = np.linspace(1, 3, 32, dtype=np.float32)
    got = hf.load(write_gguf(tmp_path / "b.gguf", tensors, c, extra=[("rope_freqs.weight", odd)])).config
    np.testing.assert_allclose(got.bind(10.0).inv_freq, plain / odd, rtol=1e-6)
    np.testing.assert_allclose(got.bind(200000.0).inv_freq, plain / odd, rtol=1e-6)
    assert float(got.bind(10.0).gain) == 1.0


def test_yarn_and_linear_from_the_header(tmp_path):
    tensors = random_tensors(c=WIDE)
    keys = [("rope.scaling.type", "linear"), ("rope.scaling.factor", 4.0)]
    got = hf.load(write_gguf(tmp_path / "a.gguf", tensors, WIDE, keys=keys)).config
    assert to_dict(got.positions) == [dict(name="linear", factor=4.0)] and got.original_len == 64
    keys = [("rope.scaling.type", "yarn"), ("rope.scaling.factor", 4.0), ("rope.scaling.yarn_beta_fast", 16.0)]
    got = hf.load(write_gguf(tmp_path / "y.gguf", tensors, WIDE, keys=keys)).config
    expected = [dict(name="yarn", factor=4.0, beta_fast=16.0)]
    np.testing.assert_array_equal(got.bind().inv_freq, got.bind(scaling=expected).inv_freq)
    assert float(got.bind().gain) == pytest.approx(1 + 0.1 * np.log(4), rel=1e-6)
    keys = [("rope.scaling.type", "longrope")]
    with pytest.raises(ConfigError, match=r"rope\.scaling\.type is 'longrope'; allowed are none, linear, yarn"):
        hf.load(write_gguf(tmp_path / "b.gguf", tensors, WIDE, keys=keys))


def test_what_is_not_a_plain_llama_is_refused_by_name(tmp_path):
    tensors = random_tensors(c=WIDE)
    with pytest.raises(ConfigError, match=r"general\.architecture is 'qwen2': not a Llama"):
        hf.load(write_gguf(tmp_path / "a.gguf", tensors, WIDE, architecture="qwen2"))
    with pytest.raises(ConfigError, match=r"unknown key llama\.attention\.temperature = 2\.0"):
        hf.load(write_gguf(tmp_path / "b.gguf", tensors, WIDE, keys=[("attention.temperature", 2.0)]))
    bias = [("blk.0.attn_q.bias", np.zeros(256, np.float32))]
    with pytest.raises(ConfigError, match=r"unexpected tensor blk\.0\.attn_q\.bias"):
        hf.load(write_gguf(tmp_path / "c.gguf", tensors, WIDE, extra=bias))
    with pytest.raises(ConfigError, match=r"missing tensor blk\.0\.ffn_up\.weight"):
        less = {k: v for k, v in tensors.items() if "up_proj" not in k}
        hf.load(write_gguf(tmp_path / "d.gguf", less, WIDE))
    with pytest.raises(ConfigError, match=r"the tokenizer has 21 ids, the model embeds 20"):
        hf.load(write_gguf(tmp_path / "e.gguf", tensors, WIDE, tokens=[*TOKENS, "z"]))


def test_damaged_files_give_one_message_that_names_them(tmp_path):
    good = write_gguf(tmp_path / "good.gguf", random_tensors(c=WIDE), WIDE).read_bytes()
    bad = tmp_path / "bad.gguf"
    for content, message in [
        (b"", "does not begin with the letters GGUF"),
        (b"PK" + good[2:], "does not begin with the letters GGUF"),
        (good[:4] + struct.pack("<I", 9) + good[8:], "GGUF version 9"),
        (good[:8] + struct.pack("<Q", 1 << 60) + good[16:], "truncated or corrupted"),
        (good[:16] + struct.pack("<Q", 1 << 40) + good[24:], "truncated or corrupted"),
        (good[:24] + struct.pack("<Q", 1 << 62) + good[32:], "truncated or corrupted"),
        (good[:200], "truncated or corrupted"),
        (good[:-5000], "truncated GGUF file: tensor"),
    ]:
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"bad\.gguf: .*{message}"):
            hf.load(bad)


@pytest.mark.parametrize(
    "change,keys,message",
    [
        (dict(rope_theta=np.inf), [], r"llama\.rope\.freq_base must be a positive, finite number, got inf"),
        (dict(rope_theta=np.nan), [], r"llama\.rope\.freq_base must be a positive, finite number, got nan"),
        (dict(rope_theta=0.0), [], r"llama\.rope\.freq_base must be a positive, finite number, got 0\.0"),
        (dict(rms_norm_eps=-1.0), [], r"llama\.attention\.layer_norm_rms_epsilon must be a positive, finite number"),
        (dict(rms_norm_eps=np.inf), [], r"layer_norm_rms_epsilon must be a positive, finite number, got inf"),
        (
            {},
            [("rope.scaling.factor", np.inf)],
            r"llama\.rope\.scaling\.factor must be a positive, finite number, got inf",
        ),
        ({}, [("rope.scaling.attn_factor", np.nan)], r"attn_factor must be a positive, finite number, got nan"),
        (
            {},
            [("rope.scaling.original_context_length", 4.5)],
            r"original_context_length must be a positive whole number",
        ),
        (
            dict(max_position_embeddings=2**32 - 1),
            [],
            r"model\.original_len must be at most 2147483647, got 4294967295",
        ),
    ],
)
def test_numbers_that_no_llama_has_are_refused_by_name(tmp_path, change, keys, message):
    with pytest.raises(ConfigError, match=rf"bad\.gguf: .*{message}"):
        hf.load(write_gguf(tmp_path / "bad.gguf", random_tensors(c=WIDE), WIDE | change, keys=keys))


def test_lists_in_lists_without_end_are_one_message(tmp_path):
    deep = struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + deep + struct.pack("<IQ", 9, 1) * 5000)
    with pytest.raises(ConfigError, match=r"bad\.gguf: corrupted GGUF file \(RecursionError"):
        hf.load(tmp_path / "bad.gguf")


def test_every_flipped_header_byte_is_answered(tmp_path):
    """No byte of the header may make the reader hang, allocate without bound or raise anything but a clear error."""
    good = write_gguf(tmp_path / "good.gguf", random_tensors(c=WIDE), WIDE).read_bytes()
    end = good.index(b"rope.freq_base") + 400
    bad = tmp_path / "bad.gguf"
    rng = np.random.default_rng(0)
    for at in rng.integers(0, end, 60):
        bad.write_bytes(good[:at] + bytes([good[at] ^ int(rng.integers(1, 256))]) + good[at + 1 :])
        try:
            hf.load(bad)
        except ConfigError as e:
            assert "bad.gguf" in str(e)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isfile(SMOLLM2), reason="GIRAFFE_SMOLLM2 names no file")
def test_smollm2_knows_the_capital_of_france():
    c = hf.load(SMOLLM2)
    assert (c.config.num_layers, c.config.theta, c.config.original_len, c.config.tie_embeddings) == (
        30,
        1e5,
        8192,
        True,
    )
    assert c.tokenizer is not None
    ids = np.array([c.tokenizer.encode("The capital of France is")])
    scores = our_logits(c, ids)[0, -1]
    assert decided(scores) and c.tokenizer.decode([int(scores.argmax())]) == " Paris"


@pytest.mark.oracle
def test_transformers_reads_the_same_gguf_alike(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = write_gguf(tmp_path / "a.gguf", random_tensors(c=WIDE), WIDE)
    parsed = load_gguf_checkpoint(str(path))["config"]
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**parsed)).eval()
    state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(state, strict=True)
    ours = hf.load(path)
    got = np.asarray(ours.params["layers"]["attention"]["q"]["kernel"][0])
    np.testing.assert_array_equal(got.reshape(256, 256).T, state["model.layers.0.self_attn.q_proj.weight"])
    tokens = np.random.default_rng(0).integers(0, 20, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    close(our_logits(ours, tokens), expected, ulps=1024)
