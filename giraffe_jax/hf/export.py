"""Export to a Hugging Face directory that transformers and vLLM load: exact, or rejected with the reason.

Both rope schemas are written: with `rope_parameters` alone transformers 4 silently runs with base 10000 and no scaling.
Everything is written to a temporary folder beside the target, which is then renamed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.hf.rope import _gain, _rope
from giraffe_jax.hf.rounding import check_fits
from giraffe_jax.hf.write import _SHARD_BYTES, _write_tensors, check_new, new_directory, write_json
from giraffe_jax.model import ModelConfig
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import Tokenizer
from giraffe_jax.tokenizer.directory import GENERATION


def save(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    max_len: int | None = None,
    gain_in_weights: bool = False,
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Returns the directory written: config.json, generation_config.json, safetensors and the tokenizer's files.

    Args:
      params: the parameter tree of the config's model.
      directory: must not exist, or be empty; it appears complete or not at all.
      dtype: "bfloat16", "float16" or "float32"; numbers are rounded to it.
      max_len: max_position_embeddings to write; by default the length that the positions reach.
      gain_in_weights: multiplies the query weights by the square of the positions' gain and writes an attention_factor
        of 1, for readers that ignore it; the weights are then rounded once more.
      shard_bytes: size above which the weights are split into several files with an index.

    Raises:
      ConfigError: positions that Hugging Face's Llama cannot compute, parameters that do not fit the config, a weight
        that the dtype cannot hold, or a directory that already holds something.
    """
    check_new(directory)
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ConfigError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}.")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}.")
    values = config_to_json(config, tokenizer, dtype=dtype, max_len=max_len, gain_in_weights=gain_in_weights)
    flat = checked(params, config)
    if gain_in_weights:
        flat = fold_gain(flat, _gain(config))
    check_fits(flat, config, dtype, lambda row: row.hf)
    with new_directory(directory) as part:
        ids = {k: values[k] for k in ("bos_token_id", "eos_token_id") if k in values}
        files = {} if tokenizer is None else tokenizer.files()
        settings = json.loads(files.pop(GENERATION, b'{"_from_model_config": true}'))
        write_json(part / "config.json", values)
        write_json(part / GENERATION, {**settings, **ids})
        for name, content in files.items():
            (part / name).write_bytes(content)
        _write_tensors(part, flat, config, dtype, shard_bytes)
    return Path(directory)


def config_to_json(
    config: ModelConfig,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "bfloat16",
    max_len: int | None = None,
    gain_in_weights: bool = False,
) -> dict[str, Any]:
    """Returns the config.json of a model, readable by transformers 4 and 5; arguments and errors as for `save`."""
    if config.qk_norm:
        raise ConfigError("model.qk_norm: Hugging Face's Llama does not normalise queries and keys; not exported.")
    rope, reach = _rope(config)
    if gain_in_weights and rope["rope_type"] in ("yarn", "longrope"):
        rope |= {
            k: 1.0 for k in ("attention_factor", "short_mscale", "long_mscale") if k == "attention_factor" or k in rope
        }
    if max_len is not None and max_len < 1:
        raise ConfigError(f"max_len must be at least 1, got {max_len}.")
    if max_len is not None and rope["rope_type"] == "dynamic" and max_len != config.original_len:
        raise ConfigError(f"max_len must be {config.original_len}: transformers takes it as dynamic's original length.")
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": max_len or reach,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": rope,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if rope["rope_type"] != "default":
        values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if rope.get("short_factor") != rope.get("long_factor"):
        # transformers 4 switches from the short to the long list at this length, not at the one in rope_scaling. Equal
        # lists need no switch, and without the key vLLM's default length is all of max_position_embeddings.
        values["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    ends = list(tokenizer.end_ids) if tokenizer else []
    values["bos_token_id"] = tokenizer.bos_id if tokenizer else None
    values["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    return values


def fold_gain(flat: Mapping[str, Any], gain: float) -> dict[str, Any]:
    """Returns the parameters with the gain of cos and sin moved into the query weights, as its square: the factor by
    which it scales the logits."""
    query = "layers/attention/q/kernel"
    return dict(flat) if gain == 1 else {**flat, query: np.asarray(flat[query], np.float32) * np.float32(gain**2)}


def checked(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters by their paths; ConfigError if names or shapes are not those of the config."""
    flat = paths(params)
    size = names.sizes(config)
    want = {n.path: (config.num_layers,) * n.stacked + names.our_shape(n.layout, size) for n in names.names(config)}
    shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    wrong = sorted(p for p in want.keys() | shapes.keys() if want.get(p) != shapes.get(p))
    if wrong:
        p = wrong[0]
        raise ConfigError(
            f"params: {p} has shape {shapes.get(p, 'missing')}, the config says {want.get(p, 'no such')}."
        )
    return flat
