"""Export of a run's LoRA adapter as PEFT's adapter_config.json and adapter_model.safetensors, for the run's base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.hf.export import config_to_json
from giraffe_jax.hf.load import find_base
from giraffe_jax.hf.names import Name
from giraffe_jax.hf.peft import modules
from giraffe_jax.hf.peft_config import BASE_CONFIG, CONFIG, EMBED, HEAD, PREFIX, WEIGHTS
from giraffe_jax.hf.read import Tensor, safetensors_directory
from giraffe_jax.hf.write import check_new, new_directory, write_json, write_safetensors
from giraffe_jax.model import ModelConfig
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import Tokenizer, read_json
from giraffe_jax.tokenizer.directory import GENERATION

_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings", "max_position_embeddings")


def save_adapter(
    params: Mapping[str, Any],
    config: ModelConfig,
    adapters: LoraConfig,
    base: str,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    *,
    dtype: str = "float32",
    max_len: int | None = None,
) -> dict[str, Any]:
    """Writes adapter_config.json, adapter_model.safetensors and the tokenizer's files; returns the adapter_config.json.

    Other weights that differ from the base's (trained norms and embeddings) are written as modules_to_save. An adapter
    has no place for positions: if they differ from the base's, its config.json with them is written as
    base_config.json.

    Args:
      params: a run's parameters, with the adapters beside their kernels.
      adapters: the run's config.lora.
      base: the Hugging Face directory that the run started from.
      directory: must not exist, or be empty; it appears complete or not at all.
      dtype: "bfloat16", "float16" or "float32"; numbers are rounded to it.
      max_len: max_position_embeddings of base_config.json; by default what the positions reach.

    Raises:
      ConfigError: positions or parts of the model that Hugging Face's Llama does not support, a base that is not a
        Hugging Face directory or does not have the run's frozen weights, numbers that the dtype cannot hold.
    """
    import jax.numpy as jnp

    check_new(directory)
    where, other = find_base(base)
    if where.is_file() or other is not None or not (where / "config.json").is_file():
        raise ConfigError(
            f"base: {where} is not the Hugging Face directory of a whole model, which an adapter of PEFT needs. "
            f"`giraffe export {where} NEW` makes one; then --base=NEW."
        )
    values, in_base = config_to_json(config, tokenizer, dtype=dtype, max_len=max_len), read_json(where / "config.json")
    flat, size = paths(params), names.sizes(config)
    whole = _differing(flat, config, safetensors_directory(where), where)
    tensors = {f"{module}.weight": value for module, value in whole.items()}
    for module, (row, i) in modules(config).items():
        lora = row.path.removesuffix("kernel") + "lora/"
        if lora + "a" in flat:
            rows, columns = names.file_shape(row.layout, size)
            tensors[f"{module}.lora_A.weight"] = np.asarray(flat[lora + "a"][i]).reshape(columns, adapters.rank).T
            tensors[f"{module}.lora_B.weight"] = np.asarray(flat[lora + "b"][i]).reshape(adapters.rank, rows).T
    with np.errstate(over="ignore"):
        out = {PREFIX + k: np.ascontiguousarray(v.astype(jnp.dtype(dtype))) for k, v in tensors.items()}
    for name, value in out.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise ConfigError(f"dtype: {name} has numbers that {dtype} cannot hold; --dtype=float32 keeps them.")
    hf = {row.path: row.hf for row in names.NAMES}
    targets = [hf[f"layers/{_part(t)}/{t}/kernel"].removesuffix(".weight").split(".")[-1] for t in adapters.targets]
    saved = sorted({module.split(".")[-1] for module in whole})
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(where.absolute()),
        "r": adapters.rank,
        "lora_alpha": int(adapters.alpha) if adapters.alpha == int(adapters.alpha) else adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": saved or None,
    }
    with new_directory(directory) as part:
        for name, content in ({} if tokenizer is None else tokenizer.files()).items():
            if name != GENERATION:
                (part / name).write_bytes(content)
        if not _same_rope(values, in_base):
            write_json(part / BASE_CONFIG, {**in_base, **{k: values[k] for k in _ROPE if k in values}})
        write_json(part / CONFIG, adapter_config)
        write_safetensors(part / WEIGHTS, out)
    return adapter_config


def _part(target: str) -> str:
    return "attention" if target in ("q", "k", "v", "o") else "mlp"


def _differing(flat: Mapping[str, Any], config: ModelConfig, base: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """Returns the weights that differ from the base's, which is what training has changed, in a file's layout."""
    import jax.numpy as jnp

    size, kept = names.sizes(config), jnp.dtype(config.param_dtype)
    changed: dict[str, Any] = {}
    for module, (row, i) in modules(config).items():
        if row.path not in flat:  # the head of a tied model
            continue
        tensor, ours = base.get(f"{module}.weight"), _in_file(flat, row, i, size)
        if tensor is None and module == HEAD:
            tensor = base.get(f"{EMBED}.weight")
        if tensor is None or tensor.shape != ours.shape:
            shape = None if tensor is None else list(tensor.shape)
            raise ConfigError(f"base: {where} is another model: {module}.weight is {shape}, here {list(ours.shape)}.")
        theirs = tensor.read()
        if np.array_equal(ours, theirs) or np.array_equal(ours, theirs.astype(kept).astype(ours.dtype)):
            continue
        if row.path.endswith("kernel") and row.stacked:
            raise ConfigError(
                f"base: {module}.weight is not that of {where}, although the run has not trained it: the run started "
                "from other weights. Give those with --base; of a run, a .gguf file or another adapter `giraffe "
                "export` makes a directory first."
            )
        changed[module] = ours
    kinds = {module.split(".")[-1] for module in changed}  # peft saves all modules of a name, or none
    for module, (row, i) in modules(config).items():
        if module.split(".")[-1] in kinds and row.path in flat:
            changed[module] = _in_file(flat, row, i, size)
    if config.tie_embeddings and EMBED in changed:  # peft would leave the head as it is in the base
        changed[HEAD] = changed[EMBED].copy()
    return changed


def _in_file(flat: Mapping[str, Any], row: Name, layer: int, size: Mapping[str, int]) -> np.ndarray:
    return names.to_file(np.asarray(flat[row.path][layer] if row.stacked else flat[row.path]), row.layout, size)


def _same_rope(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Returns whether two config.json describe the same positions."""
    from giraffe_jax.hf.config import config_from_json

    one, other = (config_from_json(dict(values)) for values in (ours, theirs))
    return (one.positions, one.theta, one.original_len) == (other.positions, other.theta, other.original_len)
