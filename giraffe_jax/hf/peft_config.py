"""PEFT's adapter_config.json: which modules have an adapter, of which rank and scale. Unsupported keys are rejected.

Modules are named as transformers names them, "model.layers.0.self_attn.q_proj", and matched by peft's rules (0.21:
tuners_utils.check_target_module_exists, utils.other.get_pattern_key).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.hf import read
from giraffe_jax.hf.read import Tensor
from giraffe_jax.tokenizer import read_json

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_CONFIG = "base_config.json"  # ours: the base's config.json with the positions that an adapter was trained with
PREFIX = "base_model.model."
EMBED, HEAD = "model.embed_tokens", "lm_head"
_READ = frozenset(
    "peft_type base_model_name_or_path r lora_alpha use_rslora rank_pattern alpha_pattern target_modules "
    "exclude_modules layers_to_transform layers_pattern modules_to_save init_lora_weights ensure_weight_tying".split()
)
# Keys that do not change what a trained adapter computes.
_HARMLESS = frozenset(
    "auto_mapping revision inference_mode lora_dropout peft_version megatron_core qalora_group_size runtime_config "
    "eva_config corda_config loftq_config lora_ga_config".split()
)
INSTEAD = "merge it in peft (merge_and_unload) and give the merged model"
# Keys that must be false or empty, and for the error, why, and what to do.
_ONLY_WITHOUT: Mapping[str, str] = {
    "use_dora": f"DoRA scales the rows of the merged weights; {INSTEAD}",
    "use_qalora": f"QA-LoRA is of quantised weights; {INSTEAD}",
    "use_bdlora": f"its matrices are block-diagonal; {INSTEAD}",
    "lora_bias": f"a Llama's maps have no biases; {INSTEAD}",
    "layer_replication": f"it makes a model of more layers than its base; {INSTEAD}",
    "megatron_config": f"Megatron's layers are not a Llama's in transformers; {INSTEAD}",
    "trainable_token_indices": f"only some rows of the embedding are in it; {INSTEAD}",
    "target_parameters": f"a Llama has no such parameters; {INSTEAD}",
    "fan_in_fan_out": "a Llama's weights are [out, in]; an adapter with it is of another model",
    "alora_invocation_tokens": "an activated LoRA acts on a part of the tokens alone and cannot be merged",
    "arrow_config": "it chooses between adapters token by token and cannot be merged",
}
# Initialisations that leave the base unchanged; others subtract the initial adapter from it.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter's config, and its tensors by their names in transformers' model."""

    directory: Path
    tensors: Mapping[str, Tensor]
    base: str  # base_model_name_or_path
    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]  # by pattern
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | str
    exclude: tuple[str, ...] | str
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    saved: tuple[str, ...]  # modules_to_save
    tied: bool  # ensure_weight_tying: in a tied model, the embedding's adapter is the head's too

    @property
    def where(self) -> Path:
        """The path of its adapter_config.json."""
        return self.directory / CONFIG

    def size(self, module: str) -> tuple[int, float]:
        """Returns (rank, scale) of a module's adapter."""
        rank = self.ranks.get(_pattern(self.ranks, module), self.rank)
        alpha = self.alphas.get(_pattern(self.alphas, module), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def targeted(self, module: str) -> bool:
        """Returns whether a module has an adapter."""
        if _is_among(module, self.exclude) or any(re.match(rf"(^|.*\.){m}($|\..*)", module) for m in self.saved):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return module.endswith("_proj")
        if not _is_among(module, self.targets):
            return False
        if module in self.targets or not self.layers:
            return True
        patterns = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in self.layers_pattern] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
        match = next(filter(None, (re.match(p, module) for p in patterns)), None)
        return match is not None and int(match["idx"]) in self.layers

    def unties(self) -> bool:
        """Returns whether the adapter makes the head of a tied base differ from its embedding."""
        present = {name for name in self.tensors if name.startswith((EMBED + ".", HEAD + "."))}
        whole = {f"{EMBED}.weight", f"{HEAD}.weight"}
        if present == whole:
            one, other = (self.tensors[name].read() for name in sorted(whole))
            return not np.array_equal(one, other)
        return bool(present) and not (self.tied and present == {f"{EMBED}.weight"})


def is_adapter(directory: Path) -> bool:
    """Returns whether a directory holds an adapter, alone or beside weights."""
    return any((directory / name).is_file() for name in (CONFIG, WEIGHTS, PICKLED))


def read_adapter(directory: Path) -> Adapter:
    """Returns the adapter of a directory; its tensors are not read yet.

    Raises:
      ConfigError: a file is missing, damaged or a pickle, another kind of adapter, or a key whose effect is not known.
    """
    where = directory / CONFIG
    if not (directory / WEIGHTS).is_file() and (directory / PICKLED).is_file():
        raise ConfigError(
            f"{directory / PICKLED}: a pickle: loading one can run any code it contains, so it is refused. Save the "
            "adapter as safetensors where you trust it (peft: save_pretrained)."
        )
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory}: an adapter is {CONFIG} and {WEIGHTS}; there is no {name}.")
    values = read_json(where)
    _check_keys(values, where)
    file_tensors = read.safetensors_file(directory / WEIGHTS)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in file_tensors.items()}
    if len(tensors) < len(file_tensors):
        raise ConfigError(f"{directory / WEIGHTS}: names a tensor with and without {PREFIX}.")
    layers = values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or not all(type(i) is int for i in layers):
        raise ConfigError(f"{where}: layers_to_transform must be a number or a list of numbers, got {layers!r}.")
    targets = _texts(values, "target_modules", where, one_is_regex=True) or ("q_proj", "v_proj")  # peft's for a Llama
    pattern = _texts(values, "layers_pattern", where)
    if isinstance(targets, str) and (layers or pattern):
        raise ConfigError(f"{where}: layers_to_transform goes with a list of target_modules, not with {targets!r}.")
    saved = _texts(values, "modules_to_save", where)
    exclude = _texts(values, "exclude_modules", where, one_is_regex=True)
    ranks = _by_pattern(values, "rank_pattern", where, integer=True)
    alphas = _by_pattern(values, "alpha_pattern", where)
    for text in (*ranks, *alphas, *pattern, *saved, *(x for x in (targets, exclude) if isinstance(x, str))):
        try:
            re.compile(text)
        except re.error as e:
            raise ConfigError(f"{where}: {text!r} is no regular expression: {e}.") from e
    return Adapter(
        directory=directory,
        tensors=tensors,
        base=str(values.get("base_model_name_or_path") or ""),
        rank=_number(values.get("r", 8), "r", where, integer=True),
        alpha=_number(values.get("lora_alpha", 8), "lora_alpha", where),
        rslora=bool(values.get("use_rslora")),
        ranks=ranks,
        alphas=alphas,
        targets=targets,
        exclude=exclude,
        layers=tuple(layers),
        layers_pattern=pattern,
        saved=saved,
        tied=bool(values.get("ensure_weight_tying")),
    )


def _check_keys(values: Mapping[str, Any], where: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{where}: peft_type is {values.get('peft_type')!r}, allowed is 'LORA'; {INSTEAD}.")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{where}: task_type is {values['task_type']!r}, allowed is 'CAUSAL_LM'.")
    if values.get("bias", "none") != "none":
        raise ConfigError(f"{where}: bias is {values['bias']!r}, allowed is 'none': {_ONLY_WITHOUT['lora_bias']}.")
    init = values.get("init_lora_weights", True)
    if init not in _PLAIN_INIT:
        raise ConfigError(
            f"{where}: init_lora_weights is {init!r}: it changes the base weights, and the adapter is "
            "of those. Convert it in peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    for key, why in _ONLY_WITHOUT.items():
        if values.get(key):
            raise ConfigError(f"{where}: {key} is {values[key]!r}, which is not supported: {why}.")
    known = {*_READ, *_HARMLESS, *_ONLY_WITHOUT, "task_type", "bias"}
    for key in values.keys() - known:
        if values[key] not in (None, False, "") and values[key] != [] and values[key] != {}:
            raise ConfigError(
                f"{where}: unknown key {key!r} = {str(values[key])[:80]}: what it does to the adapter is not known "
                f"here, so it is refused; {INSTEAD}.{nearest(key, sorted(known))}"
            )


def _number(value: Any, key: str, where: Path, integer: bool = False) -> Any:
    good = isinstance(value, int if integer else int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or (integer and value < 1):
        raise ConfigError(
            f"{where}: {key} must be a {'positive whole' if integer else 'finite'} number, got {value!r}."
        )
    return value


def _by_pattern(values: Mapping[str, Any], key: str, where: Path, integer: bool = False) -> dict[str, Any]:
    patterns = values.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise ConfigError(f"{where}: {key} must map patterns to numbers, got {patterns!r}.")
    return {pattern: _number(value, f"{key}[{pattern!r}]", where, integer) for pattern, value in patterns.items()}


def _texts(values: Mapping[str, Any], key: str, where: Path, one_is_regex: bool = False) -> Any:
    """Returns a key's names as a tuple; with `one_is_regex`, a single string is returned as it is."""
    texts = values.get(key) or []
    if isinstance(texts, str):
        return texts if one_is_regex else (texts,)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where}: {key} must be a list of module names, got {texts!r}.")
    return tuple(texts)


def _is_among(module: str, chosen: tuple[str, ...] | str) -> bool:
    if isinstance(chosen, str):
        return bool(re.fullmatch(chosen, module)) if chosen else False
    return module in chosen or any(module.endswith(f".{name}") for name in chosen)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), module)
