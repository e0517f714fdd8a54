"""LoRA directories of PEFT: merged as the float64 formula says, and everything else refused by name."""

import json

import numpy as np
import pytest
from hf_models import CONFIG, random_tensors, write
from safetensors.numpy import save_file

from giraffe_jax import hf, identity
from giraffe_jax.config import ConfigError
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import paths
from tests.close import close

PREFIX = "base_model.model."
PLAIN = dict(peft_type="LORA", task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"])
SIDES = {"q_proj": ("self_attn", 32, 32), "k_proj": ("self_attn", 32, 16), "down_proj": ("mlp", 48, 32)}  # in, out


def pairs(ranks, layers=range(3), seed=5):
    """{name in a file: tensor} of adapters of {module's last word: rank}."""
    rng, found = np.random.default_rng(seed), {}
    for word, rank in ranks.items():
        part, fan_in, fan_out = SIDES[word]
        for i in layers:
            module = f"{PREFIX}model.layers.{i}.{part}.{word}."
            found[module + "lora_A.weight"] = rng.standard_normal((rank, fan_in)).astype(np.float32)
            found[module + "lora_B.weight"] = rng.standard_normal((fan_out, rank)).astype(np.float32)
    return found


def adapter(directory, tensors=None, **changes):
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    tensors = pairs(dict(q_proj=3, down_proj=3)) if tensors is None else tensors
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    return directory


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", random_tensors())


def merged(scales, tensors):
    """{name: W + scale B A} in float64, of {module's name without its layer: scale}, or {with its layer: ...}."""
    found = {k: v.astype(np.float64) for k, v in random_tensors().items()}
    for name in [n for n in tensors if n.endswith("lora_A.weight")]:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[name].astype(np.float64), tensors[name.replace("_A.", "_B.")].astype(np.float64)
        scale = next(s for ending, s in scales.items() if module.endswith(ending))
        found[f"{module}.weight"] = found[f"{module}.weight"] + scale * b @ a
    return found


def check(lm, want):
    """Compares every weight, back in the layout of the file."""
    flat, d = paths(lm.params), CONFIG["hidden_size"]
    kernels = {"self_attn.q_proj": "attention/q", "self_attn.k_proj": "attention/k", "mlp.down_proj": "mlp/down"}
    for module, path in kernels.items():
        for i in range(3):
            kernel = np.asarray(flat[f"layers/{path}/kernel"][i])
            kernel = kernel.T if path.startswith("mlp") else kernel.reshape(d, -1).T
            close(kernel, want[f"model.layers.{i}.{module}.weight"], ulps=16, what=module)
    close(flat["norm/scale"], want["model.norm.weight"])
    close(flat["embed/embedding"], want["model.embed_tokens.weight"], ulps=16)
    close(np.asarray(flat["lm_head/kernel"]).T, want["lm_head.weight"], ulps=16)


@pytest.mark.parametrize(
    ("changes", "ranks", "scales"),
    [
        ({}, dict(q_proj=3, down_proj=3), {"q_proj": 7 / 3, "down_proj": 7 / 3}),
        (dict(use_rslora=True), dict(q_proj=3, down_proj=3), {"_proj": 7 / 3**0.5}),
        (dict(rank_pattern={"q_proj": 5}), dict(q_proj=5, down_proj=3), {"q_proj": 7 / 5, "down_proj": 7 / 3}),
        (
            dict(rank_pattern={"q_proj": 4}, alpha_pattern={r"layers\.[01]\.self_attn\.q_proj": 2, "proj": 9}),
            dict(q_proj=4, down_proj=3),  # "proj" is no whole word of a name, so it matches nothing
            {"0.self_attn.q_proj": 2 / 4, "1.self_attn.q_proj": 2 / 4, "q_proj": 7 / 4, "down_proj": 7 / 3},
        ),
        (dict(alpha_pattern={"^model.layers.1.*": 1, ".*q_proj": 2}), dict(q_proj=3, down_proj=3),
         {"1.self_attn.q_proj": 1 / 3, "1.mlp.down_proj": 1 / 3, "q_proj": 2 / 3, "down_proj": 7 / 3}),
        (dict(target_modules=r".*\.(q_proj|down_proj)"), dict(q_proj=3, down_proj=3), {"_proj": 7 / 3}),
        (dict(target_modules="all-linear", exclude_modules=["k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]),
         dict(q_proj=3, down_proj=3), {"_proj": 7 / 3}),
    ],
)  # fmt: skip
def test_merged_is_the_formula_in_float64(tmp_path, base, changes, ranks, scales):
    tensors = pairs(ranks)
    check(hf.load(adapter(tmp_path / "a", tensors, **changes), base=str(base)), merged(scales, tensors))


def test_an_adapter_beside_the_weights_is_read_and_so_is_one_that_names_its_base(tmp_path, base):
    tensors = pairs(dict(k_proj=3), layers=[0, 2])
    want = merged({"k_proj": 7 / 3}, tensors)
    about = dict(target_modules=["k_proj"], layers_to_transform=[0, 2])
    check(hf.load(adapter(tmp_path / "alone", tensors, **about, base_model_name_or_path=str(base))), want)
    before = identity.of_source(str(base))
    check(hf.load(adapter(base, tensors, **about, base_model_name_or_path="other/name")), want)
    assert before.items() < identity.of_source(str(base)).items()


def test_whole_weights_and_embeddings_adapters(tmp_path, base):
    rng, tensors = np.random.default_rng(1), pairs(dict(q_proj=3))
    new = {name: rng.standard_normal(shape).astype(np.float32)
           for name, shape in {"model.norm.weight": 32, "lm_head.weight": (96, 32)}.items()}  # fmt: skip
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 96), (32, 3)))
    embed = f"{PREFIX}model.embed_tokens."
    tensors |= {PREFIX + k: v for k, v in new.items()}
    want = merged({"q_proj": 7 / 3}, tensors) | new
    want["model.embed_tokens.weight"] = want["model.embed_tokens.weight"] + 7 / 3 * (b.astype(float) @ a).T
    tensors |= {embed + "lora_embedding_A": a, embed + "lora_embedding_B": b}
    about = dict(target_modules=["q_proj", "embed_tokens"], modules_to_save=["model.norm", "lm_head"])
    check(hf.load(adapter(tmp_path / "a", tensors, **about), base=str(base)), want)


def test_an_adapter_of_whole_weights_alone_is_read_but_its_training_does_not_continue(tmp_path, base):
    new = np.full(32, 2.0, np.float32)
    about = dict(target_modules=["dense"], modules_to_save=["model.norm"])
    where = adapter(tmp_path / "a", {f"{PREFIX}model.norm.weight": new}, **about)
    check(hf.load(where, base=str(base)), merged({}, {}) | {"model.norm.weight": new})
    with pytest.raises(ConfigError, match="this one has no low-rank matrices"):
        hf.load(where, base=str(base), adapters=LoraConfig(rank=3))


def test_a_tied_base_gets_a_head_of_its_own_where_the_two_differ(tmp_path):
    base = write(tmp_path / "base", random_tensors(tied=True), tie_word_embeddings=True)
    old, new = random_tensors()["model.embed_tokens.weight"], np.ones((96, 32), np.float32)
    tensors = pairs(dict(q_proj=3)) | {f"{PREFIX}model.embed_tokens.weight": new}
    about = dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    lm = hf.load(adapter(tmp_path / "a", tensors, **about), base=str(base))
    np.testing.assert_array_equal(lm.params["embed"]["embedding"], new)
    np.testing.assert_array_equal(lm.params["lm_head"]["kernel"].T, old)
    assert not lm.config.tie_embeddings and not hf.read_config(tmp_path / "a", str(base)).tie_embeddings
    both = tensors | {f"{PREFIX}lm_head.weight": new}
    about = dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    lm = hf.load(adapter(tmp_path / "b", both, **about), base=str(base))
    assert lm.config.tie_embeddings and "lm_head" not in lm.params
    head = f"{PREFIX}lm_head."
    tensors = {
        f"{head}lora_A.weight": np.ones((3, 32), np.float32),
        f"{head}lora_B.weight": np.ones((96, 3), np.float32),
    }
    lm = hf.load(adapter(tmp_path / "c", tensors, target_modules=["lm_head"]), base=str(base))
    close(lm.params["lm_head"]["kernel"].T, old + 7.0)  # 7 / 3 of a sum of three ones
    np.testing.assert_array_equal(lm.params["embed"]["embedding"], old)
    tensors[f"{head}base_layer.weight"] = new
    with pytest.raises(
        ConfigError, match="lm_head.base_layer.weight is not the base's weight, which embedding and head"
    ):
        hf.load(adapter(tmp_path / "c", tensors, target_modules=["lm_head"]), base=str(base))


Q = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_"
NAN = np.full((3, 32), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(use_dora=True), "use_dora is True, which is not supported: DoRA .* merge it in peft"),
        (dict(peft_type="IA3"), "peft_type is 'IA3', allowed is 'LORA'"),
        (dict(task_type="SEQ_CLS"), "task_type is 'SEQ_CLS', allowed is 'CAUSAL_LM'"),
        (dict(lora_bias=True), "lora_bias is True, which is not supported"),
        (dict(bias="all"), "bias is 'all', allowed is 'none'"),
        (dict(layer_replication=[[0, 2], [1, 3]]), "layer_replication is .*, which is not supported"),
        (dict(megatron_config={"a": 1}), "megatron_config is .*, which is not supported"),
        (dict(trainable_token_indices=[1]), r"trainable_token_indices is \[1\], which is not supported"),
        (dict(fan_in_fan_out=True), "fan_in_fan_out is True, which is not supported"),
        (dict(use_qalora=True), "use_qalora is True, which is not supported"),
        (dict(target_parameters=["x"]), "target_parameters is .*, which is not supported"),
        (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4': it changes the base weights"),
        (dict(init_lora_weights="loftq"), "init_lora_weights is 'loftq': it changes the base weights"),
        (dict(use_new_thing=2), "unknown key 'use_new_thing' = 2: what it does .* refused"),
        (dict(r=0), "r must be a positive whole number, got 0"),
        (dict(lora_alpha="8"), "lora_alpha must be a finite number, got '8'"),
        (dict(rank_pattern={"q_proj": 2.5}), r"rank_pattern\['q_proj'\] must be a positive whole number, got 2.5"),
        (dict(alpha_pattern={"(": 2}), r"'\(' is no regular expression"),
        (dict(target_modules=[3]), r"target_modules must be a list of module names, got \[3\]"),
        (dict(target_modules=["wq"]), r"unexpected tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight "
         r"\[3, 48\] and 11 more: adapter_config.json gives model.layers.0.mlp.down_proj no such thing"),
        (dict(target_modules=["q_proj", "down_proj", "norm"]), "target_modules names model.norm, a norm, which has no"),
        (dict(target_modules=["q_proj", "down_proj", "k_proj"]), "missing tensor .*layers.0.self_attn.k_proj.lora_A"),
        (dict(modules_to_save=["lm_head"]), "missing tensor base_model.model.lm_head.weight: .*modules_to_save"),
        (dict(r=4), r"lora_A.weight has shape \[3, 32\], expected is \[4, 32\]: .* an adapter of rank 4"),
        (dict(tensors={Q + "A.weight": NAN}), "q_proj.lora_A.weight holds numbers that are not finite"),
        (dict(tensors={f"{PREFIX}model.layers.9.mlp.x": NAN}), r"unexpected tensor .*layers.9.mlp.x \[3, 32\]: a "),
        (dict(tensors={f"{PREFIX}lm_head.weight": NAN}), r"lm_head.weight has shape \[3, 32\], expected is \[96, 32\]"),
    ],
)  # fmt: skip
def test_what_is_not_a_plain_lora_of_this_base_is_refused_by_name(tmp_path, base, changes, message):
    extra = changes.pop("tensors", {})
    directory = adapter(tmp_path / "a", pairs(dict(q_proj=3, down_proj=3)) | extra, **changes)
    with pytest.raises(ConfigError, match=message):
        hf.load(directory, base=str(base))


def test_keys_that_change_nothing_are_taken(tmp_path, base):
    harmless = dict(lora_dropout=0.1, peft_version="9", revision="x", use_new_thing=None, eva_config={"rho": 2.0})
    harmless |= dict(init_lora_weights="eva", loftq_config={}, megatron_core="megatron.core", inference_mode=True)
    hf.load(adapter(tmp_path / "a", **harmless), base=str(base))


def test_where_the_base_is(tmp_path, base):
    alone = adapter(tmp_path / "a", base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(
        ConfigError, match="which adapter_config.json calls 'meta-llama/Llama-3.2-1B': no directory here"
    ):
        hf.load(alone)
    with pytest.raises(ConfigError, match="base: .*base is no adapter"):
        hf.load(base, base=str(base))
    with pytest.raises(ConfigError, match="base: .*a is not the Hugging Face directory of a whole model"):
        hf.load(alone, base=str(alone))
    (alone / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="there is no adapter_config.json"):
        hf.load(alone, base=str(base))
    (base / "adapter_config.json").write_text(json.dumps(PLAIN))
    with pytest.raises(ConfigError, match="there is no adapter_model.safetensors"):
        hf.load(base)
    (base / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"adapter_model.bin: a pickle: .* save_pretrained"):
        hf.load(base)


def test_a_quantised_base_is_refused(tmp_path, base):
    write(base, random_tensors(), quantization_config={"load_in_4bit": True})
    with pytest.raises(ConfigError, match="quantised weights"):
        hf.load(adapter(tmp_path / "a"), base=str(base))
