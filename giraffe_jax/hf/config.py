"""config.json <-> ModelConfig: the schemas of transformers 4 (`rope_scaling`, `rope_theta`) and 5 (`rope_parameters`).

An unknown attribute is rejected by name: a converter that ignores one can silently give a slightly wrong model.
"""

import reprlib
import warnings
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
_ORIGINAL, _MAX = "original_max_position_embeddings", "max_position_embeddings"

_shorten = reprlib.Repr()  # a value in an error, whatever its length and depth
_shorten.maxdict, _shorten.maxlist, _shorten.maxstring, _shorten.maxlong, _shorten.maxother = 16, 8, 80, 40, 80
_shown = _shorten.repr


def config_from_json(values: Mapping[str, Any], where: str = "config.json", **overrides: Any) -> ModelConfig:
    """Returns the ModelConfig that a config.json describes, its rope scaling as `positions`.

    Args:
      values: the parsed file.
      where: the name of the file in errors.
      **overrides: more fields of ModelConfig to set (dtype, param_dtype, attention, ...).

    Raises:
      ConfigError: not a Llama; an attribute that is unknown, missing, or has a value that is not implemented; or two
        rope schemas that disagree.
    """
    _check_numbers(values, where)
    _check_kind(values, where)
    needed = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    if values["model_type"] == "mistral":  # its defaults differ from a Llama's: 8 key heads and a window of 4096
        needed += ["num_key_value_heads", "sliding_window"]
    missing = [k for k in needed if k not in values]
    if missing:
        raise ConfigError(f"{where}: missing {missing}.")
    heads, width = size(values, "num_attention_heads", where), size(values, "hidden_size", where)
    if values.get("head_dim") is None and width % heads:
        raise ConfigError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}.")
    max_len = size(values, _MAX, where, 2048)
    rope = _rope(values, where)
    fields = dict(
        vocab_size=size(values, "vocab_size", where),
        d_model=width,
        d_mlp=size(values, "intermediate_size", where),
        num_layers=size(values, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=size(values, "num_key_value_heads", where, heads),
        head_dim=size(values, "head_dim", where, width // heads),
        theta=rope["rope_theta"],
        original_len=rope.get(_ORIGINAL, max_len),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
        positions=_positions(rope, max_len, where),
    )
    return model_config(fields | overrides, where)


def model_config(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """Returns a ModelConfig; the error names the file the fields were read from."""
    try:
        return build(ModelConfig, fields, where)
    except ConfigError as e:
        raise e if where in str(e) else ConfigError(f"{where}: {e}") from e


def size(values: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """Returns values[key], a positive whole number, or `default` if it is absent or null. ConfigError for others."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {key} must be a positive whole number, got {_shown(value)}.")
    return value


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for numbers that Python's JSON parser accepts, but that are not finite float64 numbers."""
    items = [(key, value, 0) for key, value in values.items() if key in _READ]
    while items:
        key, value, depth = items.pop()
        if isinstance(value, int | float) and not abs(value) <= 1e300:  # NaN, infinite, or beyond what float64 holds
            raise ConfigError(f"{where}: {key} must be a finite number, got {_shown(value)}.")
        if isinstance(value, Mapping | list):
            if depth > 3:
                raise ConfigError(f"{where}: {key}: lists in lists in lists are not expected, got {_shown(value)}.")
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            items += [(f"{key}.{k}" if isinstance(value, Mapping) else f"{key}[{k}]", v, depth + 1) for k, v in inside]


def _check_kind(values: Mapping[str, Any], where: str) -> None:
    kind = values.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ConfigError(
            f"{where}: model_type is {_shown(kind)}: not a Llama. Allowed are 'llama', and 'mistral' without a"
            " sliding window."
        )
    for key, value in values.items():
        if key == "layer_types" and isinstance(value, list) and all(v == "full_attention" for v in value):
            continue
        if key in _ONLY_AT and value not in _ONLY_AT[key][0]:
            allowed, why = _ONLY_AT[key]
            raise ConfigError(
                f"{where}: {key} is {_shown(value)}, allowed is {' or '.join(map(repr, allowed))}: {why}."
            )
    unknown = [k for k in values if k not in _READ and k not in _HARMLESS and k not in _ONLY_AT]
    if unknown:
        raise ConfigError(
            f"{where}: unknown attribute {_shown(unknown[0])} = {_shown(values[unknown[0]])}: its effect on the model"
            f" is not known, so the model is rejected.{nearest(unknown[0], sorted(_READ))}"
        )


def _rope(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the rope parameters in the schema of transformers 5, from either schema or from both if they agree."""
    by_key = {}
    if values.get("rope_parameters"):
        by_key["rope_parameters"] = _standard(values["rope_parameters"], values, f"{where}: rope_parameters")
    if values.get("rope_scaling"):
        by_key["rope_scaling"] = _standard(values["rope_scaling"], values, f"{where}: rope_scaling")
    elif "rope_scaling" in values and values.get("rope_theta") is not None and by_key:
        by_key["rope_scaling"] = _standard({}, values, where)  # transformers 4 reads: no scaling
    if not by_key:
        return _standard({}, values, where)
    if len(by_key) == 2 and by_key["rope_parameters"] != by_key["rope_scaling"]:
        raise ConfigError(
            f"{where}: rope_parameters and rope_scaling with rope_theta disagree: {_shown(by_key['rope_parameters'])}"
            f" and {_shown(by_key['rope_scaling'])}; remove the wrong one."
        )
    rope = by_key.get("rope_parameters", by_key.get("rope_scaling", {}))
    top = values.get("rope_theta")
    if top is not None and top != rope["rope_theta"]:
        raise ConfigError(f"{where}: rope_theta is {_shown(top)} and {rope['rope_theta']!r} in {next(iter(by_key))}.")
    return rope


def _standard(rope: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
        raise ConfigError(f"{where}: expected one flat set of parameters for all layers, got {_shown(rope)}.")
    rope = {k: v for k, v in rope.items() if v is not None}
    legacy, kind = rope.pop("type", None), rope.pop("rope_type", None)
    if legacy is not None and kind is not None and legacy != kind:
        raise ConfigError(f"{where}: rope_type is {_shown(kind)} and type is {_shown(legacy)}.")
    kind = kind or legacy or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in ("default", *_ROPE):
        hint = nearest(kind, ["default", *_ROPE]) if isinstance(kind, str) else ""
        raise ConfigError(
            f"{where}: rope_type {_shown(kind)} is not known; known are default, {', '.join(_ROPE)}.{hint}"
        )
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise ConfigError(f"{where}: partial_rotary_factor other than 1 is another architecture.")
    theta, top = rope.pop("rope_theta", None), values.get("rope_theta")
    theta = theta if theta is not None else top if top is not None else 10000.0
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise ConfigError(f"{where}: rope_theta must be a positive number, got {_shown(theta)}.")
    allowed = _ROPE[kind][1] + _ROPE[kind][2] if kind != "default" else ()
    result: dict[str, Any] = {"rope_type": kind, "rope_theta": float(theta)}
    original, top = rope.pop(_ORIGINAL, None), values.get(_ORIGINAL)
    if kind in _HAS_ORIGINAL:
        lengths = [size({_ORIGINAL: x}, _ORIGINAL, where) for x in (original, top) if x is not None]
        if len(set(lengths)) == 2:
            raise ConfigError(f"{where}: {_ORIGINAL} is {original!r} here and {top!r} outside.")
        result[_ORIGINAL] = lengths[0] if lengths else size(values, _MAX, where, 2048)
        _warn_of_other_readings(rope | result, original, top, values, where)
    for key in ("short_mscale", "long_mscale"):  # vLLM's names for attention_factor
        value = rope.pop(key, None) if kind == "longrope" else None
        if value is not None and value != rope.get("attention_factor"):
            raise ConfigError(
                f"{where}: {key} is {_shown(value)}, but attention_factor is {_shown(rope.get('attention_factor'))}."
            )
    unknown = [k for k in rope if k not in allowed]
    if unknown:
        raise ConfigError(
            f"{where} ({kind}): unknown {_shown(unknown)}; it takes {', '.join(allowed) or 'rope_theta'}."
        )
    for key in ("short_factor", "long_factor"):  # the method `longrope` takes a list per layer, transformers does not
        if isinstance(rope.get(key), list) and any(isinstance(x, list) for x in rope[key]):
            raise ConfigError(f"{where}: {key} must be one list of numbers, got {_shown(rope[key])}.")
    return result | rope


def _warn_of_other_readings(
    rope: Mapping[str, Any], inside: int | None, outside: int | None, values: Mapping[str, Any], where: str
) -> None:
    """Warns if a file written by transformers 4 gives one model in transformers 4 and another in transformers 5.

    They read original_max_position_embeddings in different places. For longrope, version 4 reads it only outside the
    rope parameters, and then uses max / original as `factor`; version 5 reads it only inside. For the other types both
    read it only inside. If it is not there, they take max_position_embeddings. We take the number from either place; if
    it is inside, that agrees with version 5.
    """
    version = str(values.get("transformers_version") or "")
    if version.partition(".")[0] not in ("", "4") or (not version and values.get("rope_parameters")):
        return
    max_len, kind, read = size(values, _MAX, where, 2048), rope["rope_type"], rope[_ORIGINAL]
    in_4 = (outside if kind == "longrope" else inside) or max_len
    in_5 = inside or max_len
    gain, factor = rope.get("attention_factor"), rope.get("factor")
    unused = kind == "longrope" and gain is not None and rope.get("short_factor") == rope.get("long_factor")
    if not unused and not in_4 == in_5 == read:
        warnings.warn(
            f"{where}: {_ORIGINAL} is {read} {'inside' if inside else 'outside'} the rope parameters only: for {kind}"
            f" transformers 4 reads {in_4}, transformers 5 reads {in_5}, and {read} is read here. Write it in both"
            " places to settle it.",
            stacklevel=2,
        )
    if kind == "longrope" and outside and gain is None and factor not in (None, max_len / outside):
        warnings.warn(
            f"{where}: factor is {_shown(factor)}, which sets the gain in transformers 5 and here; transformers 4 takes"
            f" {_MAX} / {_ORIGINAL} = {max_len / outside:g}. Write attention_factor to settle it.",
            stacklevel=2,
        )


def _positions(rope: Mapping[str, Any], max_len: int, where: str) -> list[dict[str, Any]]:
    kind = rope["rope_type"]
    if kind == "default":
        return []
    name, required, optional = _ROPE[kind]
    parameters = {k: rope[k] for k in required + optional if k in rope}
    if kind in ("yarn", "longrope") and "factor" not in parameters:  # as transformers does
        parameters["factor"] = max_len / rope[_ORIGINAL]
    if kind == "longrope" and isinstance(parameters["factor"], int | float):
        if "attention_factor" not in parameters and parameters["factor"] <= 1:
            parameters["attention_factor"] = 1.0
        if parameters["factor"] < 1:
            parameters.pop("factor")
    missing = [k for k in required if k not in parameters]
    if missing:
        raise ConfigError(f"{where}: rope scaling of type {kind!r} is missing {missing}.")
    return [{"name": name, **parameters}]
