"""config.json <-> ModelConfig: the schemas of transformers 4 (`rope_scaling`, `rope_theta`) and 5 (`rope_parameters`).

An attribute that is not understood is refused by name. An ignored attribute is how a converted model turns out slightly
wrong with nobody noticing.
"""

from collections.abc import Mapping
from typing import Any

from giraffe_jax.config import ConfigError, build, nearest
from giraffe_jax.model import ModelConfig

# Attributes that do not change what the model computes.
_HARMLESS = frozenset(
    "architectures bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id torch_dtype dtype "
    "transformers_version use_cache initializer_range pretraining_tp name_or_path _name_or_path is_llama_config "
    "transformers.js_config tokenizer_class unsloth_version unsloth_fixed output_attentions output_hidden_states "
    "return_dict chunk_size_feed_forward id2label label2id problem_type task_specific_params torchscript "
    "max_length _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation".split()
)
# Attributes of other models: harmless at these values only, and why.
_ONLY_AT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "the gate of a Llama's MLP is SiLU"),
    "attention_bias": ((False, None), "a Llama's attention has no biases; this is another architecture"),
    "mlp_bias": ((False, None), "a Llama's MLP has no biases; this is another architecture"),
    "attention_dropout": ((0, 0.0, None), "attention dropout is not implemented"),
    "partial_rotary_factor": ((1, 1.0, None), "rotating only a part of each head is another architecture"),
    "sliding_window": ((None,), "sliding-window attention is another architecture"),
    "use_sliding_window": ((False, None), "sliding-window attention is another architecture"),
    "rope_interleaved": ((False, None), "the rotary layout of this file is not the half-split one of transformers"),
    "quantization_config": ((None,), "quantised weights are read from GGUF; give the float checkpoint"),
    "is_encoder_decoder": ((False, None), "a Llama is decoder-only"),
    "is_decoder": ((True, False, None), "a Llama is decoder-only"),
    "add_cross_attention": ((False, None), "a Llama has no cross-attention"),
    "cross_attention_hidden_size": ((None,), "a Llama has no cross-attention"),
    "auto_map": ((None,), "a model with its own code is not a plain Llama"),
    "qk_norm": ((False, None), "normalised queries and keys are another architecture"),
    "layer_types": ((None,), "layers of different kinds are another architecture"),
    "no_rope_layers": ((None,), "layers without rotation are another architecture"),
}
_READ = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim max_position_embeddings original_max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta "
    "rope_scaling rope_parameters".split()
)

_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
# rope_type -> (our method, required keys, optional keys); all keep their names.
_ROPE: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "linear": ("linear", ("factor",), ()),
    "dynamic": ("dynamic", ("factor",), ()),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": ("yarn", ("factor",), _YARN),
    "longrope": ("longrope", ("short_factor", "long_factor"), ("factor", "attention_factor")),
}
_HAS_ORIGINAL = ("llama3", "yarn", "longrope")


def config_from_json(values: Mapping[str, Any], where: str = "config.json", **ours: Any) -> ModelConfig:
    """Returns the ModelConfig that a config.json describes, its rope scaling as `positions`.

    Args:
      values: the parsed file.
      where: how the file is called in errors.
      **ours: fields of ModelConfig to set beside (dtype, param_dtype, attention, ...).

    Raises:
      ConfigError: not a Llama, an attribute that is unknown or has a value this does not implement, one that is
        missing, or two rope schemas that disagree.
    """
    _check_kind(values, where)
    needed = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    if values["model_type"] == "mistral":  # its defaults differ from a Llama's: 8 key heads and a window of 4096
        needed += ["num_key_value_heads", "sliding_window"]
    missing = [k for k in needed if k not in values]
    if missing:
        raise ConfigError(f"{where}: missing {missing}.")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if not (isinstance(heads, int) and isinstance(width, int) and heads > 0):
        raise ConfigError(f"{where}: hidden_size and num_attention_heads must be integers, got {width!r}, {heads!r}.")
    if not values.get("head_dim") and width % heads:
        raise ConfigError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}.")
    rope, max_len = _rope(values, where), values.get("max_position_embeddings", 2048)
    fields = dict(
        vocab_size=values["vocab_size"],
        d_model=width,
        d_mlp=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or width // heads,
        theta=rope["rope_theta"],
        original_len=rope.get("original_max_position_embeddings", max_len),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
        positions=_positions(rope, max_len, where),
    )
    return model_config(fields | ours, where)


def model_config(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """Returns a ModelConfig; the error names the file the fields were read from."""
    try:
        return build(ModelConfig, fields, where)
    except ConfigError as e:
        raise e if where in str(e) else ConfigError(f"{where}: {e}") from e


def _check_kind(values: Mapping[str, Any], where: str) -> None:
    kind = values.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ConfigError(
            f"{where}: model_type is {kind!r}: not a Llama. Allowed are 'llama', and 'mistral' without a"
            " sliding window."
        )
    for key, value in values.items():
        if key == "layer_types" and isinstance(value, list) and set(value) == {"full_attention"}:
            continue
        if key in _ONLY_AT and value not in _ONLY_AT[key][0]:
            allowed, why = _ONLY_AT[key]
            raise ConfigError(f"{where}: {key} is {value!r}, allowed is {' or '.join(map(repr, allowed))}: {why}.")
    unknown = [k for k in values if k not in _READ and k not in _HARMLESS and k not in _ONLY_AT]
    if unknown:
        raise ConfigError(
            f"{where}: unknown attribute {unknown[0]!r} = {values[unknown[0]]!r}: what it does to the model is not"
            f" known here, so the model is refused.{nearest(unknown[0], sorted(_READ))}"
        )


def _rope(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns one rope description, in the schema of transformers 5, from either schema or from two that agree."""
    found = {}
    if values.get("rope_parameters"):
        found["rope_parameters"] = _standard(values["rope_parameters"], values, f"{where}: rope_parameters")
    if values.get("rope_scaling"):
        found["rope_scaling"] = _standard(values["rope_scaling"], values, f"{where}: rope_scaling")
    elif "rope_scaling" in values and values.get("rope_theta") is not None and found:
        found["rope_scaling"] = _standard({}, values, where)  # transformers 4 reads: no scaling
    if not found:
        return _standard({}, values, where)
    if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
        raise ConfigError(
            f"{where}: rope_parameters and rope_scaling with rope_theta disagree: {found['rope_parameters']} and"
            f" {found['rope_scaling']}; remove the wrong one."
        )
    rope = found.get("rope_parameters", found.get("rope_scaling", {}))
    top = values.get("rope_theta")
    if top is not None and float(top) != rope["rope_theta"]:
        raise ConfigError(f"{where}: rope_theta is {top!r} and {rope['rope_theta']!r} in {next(iter(found))}.")
    return rope


def _standard(rope: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
        raise ConfigError(f"{where}: expected one flat set of parameters for all layers, got {rope!r}.")
    rope = {k: v for k, v in rope.items() if v is not None}
    legacy, kind = rope.pop("type", None), rope.pop("rope_type", None)
    if legacy is not None and kind is not None and legacy != kind:
        raise ConfigError(f"{where}: rope_type is {kind!r} and type is {legacy!r}.")
    kind = kind or legacy or "default"
    kind = "longrope" if kind == "su" else kind
    if kind != "default" and kind not in _ROPE:
        raise ConfigError(f"{where}: rope_type {kind!r} is not known; known are default, {', '.join(_ROPE)}.")
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise ConfigError(f"{where}: partial_rotary_factor other than 1 is another architecture.")
    theta, top = rope.pop("rope_theta", None), values.get("rope_theta")
    theta = theta if theta is not None else top if top is not None else 10000.0
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise ConfigError(f"{where}: rope_theta must be a positive number, got {theta!r}.")
    allowed = _ROPE[kind][1] + _ROPE[kind][2] if kind != "default" else ()
    result: dict[str, Any] = {"rope_type": kind, "rope_theta": float(theta)}
    original = rope.pop("original_max_position_embeddings", None)
    if kind in _HAS_ORIGINAL:
        top = values.get("original_max_position_embeddings")
        if original is not None and top is not None and original != top:
            raise ConfigError(f"{where}: original_max_position_embeddings is {original!r} here and {top!r} outside.")
        default = values.get("max_position_embeddings", 2048)
        result["original_max_position_embeddings"] = next(x for x in (original, top, default) if x is not None)
    for key in ("short_mscale", "long_mscale"):  # vLLM's words for attention_factor
        value = rope.pop(key, None) if kind == "longrope" else None
        if value is not None and value != rope.get("attention_factor"):
            raise ConfigError(f"{where}: {key} is {value!r}, but attention_factor is {rope.get('attention_factor')!r}.")
    unknown = [k for k in rope if k not in allowed]
    if unknown:
        raise ConfigError(f"{where} ({kind}): unknown {unknown}; it takes {', '.join(allowed) or 'rope_theta'}.")
    return result | rope


def _positions(rope: Mapping[str, Any], max_len: int, where: str) -> list[dict[str, Any]]:
    kind = rope["rope_type"]
    if kind == "default":
        return []
    name, required, optional = _ROPE[kind]
    given = {k: rope[k] for k in required + optional if k in rope}
    if kind in ("yarn", "longrope") and "factor" not in given:  # as transformers does
        given["factor"] = max_len / rope["original_max_position_embeddings"]
    if kind == "longrope" and "attention_factor" not in given and given["factor"] <= 1:
        given["attention_factor"] = 1.0
    if kind == "longrope" and given["factor"] < 1:
        given.pop("factor")
    missing = [k for k in required if k not in given]
    if missing:
        raise ConfigError(f"{where}: rope scaling of type {kind!r} is missing {missing}.")
    return [{"name": name, **given}]
