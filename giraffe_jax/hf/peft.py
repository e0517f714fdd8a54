"""LoRA adapters in PEFT's files: merged into the weights of their base, or kept as parameters for further training.

adapter_config.json says which modules have an adapter, of which rank and scale (peft_config.py); the tensors must be
exactly those. A merged weight is W + scale B A in float32.
"""

import math
from collections.abc import Mapping

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.hf.names import Name
from giraffe_jax.hf.peft_config import CONFIG, EMBED, HEAD, INSTEAD, PREFIX, WEIGHTS, Adapter
from giraffe_jax.hf.read import Tensor
from giraffe_jax.model import ModelConfig
from giraffe_jax.model.lora import LoraConfig


def modules(config: ModelConfig) -> dict[str, tuple[Name, int]]:
    """Returns {module: (row of the table of names, layer)} of all modules with weights, including a tied head."""
    rows = [(row, i) for row in names.NAMES for i in (range(config.num_layers) if row.stacked else [0])]
    return {row.hf.format(i=i).removesuffix(".weight"): (row, i) for row, i in rows}


def merge(
    adapter: Adapter, base: Mapping[str, Tensor], config: ModelConfig, *, alone: bool = False
) -> dict[str, Tensor]:
    """Returns the base's tensors with the adapter merged: W + scale B A, or the adapter's whole weight that replaces W.

    Args:
      base: the base's tensors by name, for `config` before it was untied (`Adapter.unties`).
      alone: only replaces whole weights; `beside` returns the low-rank matrices.

    Raises:
      ConfigError: the adapter's tensors are not those that its config describes: missing, extra or of another shape.
    """
    out, (pairs, whole) = dict(base), parts(adapter, config)
    if config.tie_embeddings and adapter.unties():
        out[f"{HEAD}.weight"] = out[f"{EMBED}.weight"]
    for module, tensor in whole.items():
        tied = config.tie_embeddings and module in pairs
        if tied and not np.array_equal(tensor.read(), base[f"{EMBED}.weight"].read()):
            raise ConfigError(
                f"{tensor.file}: {PREFIX}{module}.base_layer.weight is not the base's weight, which embedding and head "
                f"share: this is the adapter of another base. Give that one with --base, or {INSTEAD}."
            )
        if f"{module}.weight" in out:  # else it is a head that stays tied
            out[f"{module}.weight"] = tensor
    for module, (a, b) in () if alone else pairs.items():
        name = f"{module}.weight"
        out[name] = _merged(out[name], a, b, adapter.size(module)[1], transposed=module == EMBED)
    return out


def parts(adapter: Adapter, config: ModelConfig) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Returns ({module: (A [rank, in], B [out, rank])}, {module: whole weight that replaces the base's}).

    Raises:
      ConfigError: names or shapes that do not fit the adapter's config and the model.
    """
    size, remaining = names.sizes(config), dict(adapter.tensors)
    known, file = modules(config), adapter.directory / WEIGHTS
    pairs, whole = {}, {}

    def take(name: str, shape: tuple[int, ...], why: str) -> Tensor:
        if name not in remaining:
            raise ConfigError(f"{file}: missing tensor {PREFIX}{name}: {why}.")
        if remaining[name].shape != shape:
            raise ConfigError(
                f"{file}: {PREFIX}{name} has shape {list(remaining[name].shape)}, expected is {list(shape)}: {why}"
                + (", and the base has another shape of it." if "lora" not in name else ".")
            )
        return _finite(remaining.pop(name), PREFIX + name)

    for module, (row, _) in known.items():
        rows, columns = (*names.file_shape(row.layout, size), 0)[:2]
        if adapter.targeted(module):
            rank, _ = adapter.size(module)
            why = f"{CONFIG} gives {module} an adapter of rank {rank}"
            if not columns:
                raise ConfigError(f"{adapter.where}: target_modules names {module}, a norm, which has no adapters.")
            if module == EMBED:
                if adapter.tied and config.tie_embeddings:
                    raise ConfigError(f"{adapter.where}: ensure_weight_tying with an adapter of {EMBED}; {INSTEAD}.")
                kinds = ("lora_embedding_A", (rank, rows)), ("lora_embedding_B", (columns, rank))
            else:
                kinds = ("lora_A.weight", (rank, columns)), ("lora_B.weight", (rows, rank))
            a, b = (take(f"{module}.{kind}", shape, why) for kind, shape in kinds)
            pairs[module] = a, b
        saved = any(module.endswith(name) for name in adapter.saved)
        key = f"{module}.base_layer.weight" if module in pairs else f"{module}.weight"
        if key in remaining or (saved and module not in pairs):
            shape = names.file_shape(row.layout, size)
            if not (key not in remaining and module == HEAD and config.tie_embeddings and adapter.tied):
                whole[module] = take(key, shape, f"{CONFIG} has it in modules_to_save" if saved else "it is a weight")
    if remaining:
        name = min(remaining)
        module = next((m for m in known if name.startswith(m + ".")), None)
        raise ConfigError(
            f"{file}: unexpected tensor {PREFIX}{name} {list(remaining[name].shape)}"
            + (f" and {len(remaining) - 1} more" if len(remaining) > 1 else "")
            + (
                f": {CONFIG} gives {module} no such thing (target_modules is {adapter.targets!r})."
                if module
                else f": a Llama with {config.num_layers} layers has no such module."
            )
        )
    if not pairs and not whole:
        raise ConfigError(f"{adapter.where}: target_modules {adapter.targets!r} names no module of a Llama.")
    return pairs, whole


def _finite(tensor: Tensor, name: str) -> Tensor:
    def checked() -> np.ndarray:
        values = tensor.read()
        if not np.isfinite(values.astype(np.float32)).all():
            raise ConfigError(f"{tensor.file}: {name} holds numbers that are not finite: the file is damaged.")
        return values

    return tensor._replace(read=checked)


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    def merged() -> np.ndarray:
        update = b.read().astype(np.float32) @ a.read().astype(np.float32)
        update = update.T if transposed else update
        return weight.read().astype(np.float32) + np.float32(scale) * update

    return weight._replace(read=merged)


def beside(adapter: Adapter, config: ModelConfig, wanted: LoraConfig) -> dict[str, np.ndarray]:
    """Returns the adapter as LoRA parameters (model/lora.py) by path, to continue its training.

    Raises:
      ConfigError: config.lora (`wanted`) does not describe the adapter; names the key, and the value that does.
    """
    pairs, _ = parts(adapter, config)
    else_ = "or merge it first (`giraffe export ADAPTER NEW`, and NEW as the source) to train other ones"
    start = f"source: {adapter.directory} is an adapter, whose training continues only with a config.lora like its own"
    rows = {row.path.split("/")[2]: row for row in names.NAMES if row.path.endswith("/kernel") and row.stacked}
    module = {kind: row.hf.removesuffix(".weight") for kind, row in rows.items()}
    adapted = {kind for kind in rows if any(module[kind].format(i=i) in pairs for i in range(config.num_layers))}
    full = {kind for kind in adapted if all(module[kind].format(i=i) in pairs for i in range(config.num_layers))}
    sizes = {adapter.size(name) for name in pairs}
    if adapted != full or len(sizes) != 1 or {EMBED, HEAD} & pairs.keys():
        raise ConfigError(
            f"{start}; this one has no low-rank matrices, or ranks or scales that differ between modules, leaves out "
            f"layers, or adapts embeddings, which config.lora cannot express: {else_.removeprefix('or ')}."
        )
    ((rank, scale),) = sizes
    if rank != wanted.rank:
        raise ConfigError(f"{start}: lora.rank is {wanted.rank}, its rank {rank}; set that, {else_}.")
    if set(wanted.targets) != adapted:
        ours = tuple(kind for kind in rows if kind in adapted)
        raise ConfigError(f"{start}: lora.targets is {wanted.targets}, it has {ours}; set that, {else_}.")
    if not math.isclose(wanted.alpha / wanted.rank, scale, rel_tol=1e-6):
        raise ConfigError(
            f"{start}: lora.alpha {wanted.alpha:g} over rank {rank} is {wanted.alpha / rank:g}, its scale is "
            f"{scale:g}: set lora.alpha={scale * rank!r}, {else_}."
        )
    size, flat = names.sizes(config), dict[str, np.ndarray]()
    for kind in wanted.targets:
        path, shape = rows[kind].path.removesuffix("kernel") + "lora/", names.our_shape(rows[kind].layout, size)
        fan_in = 2 if kind == "o" else 1
        layer_pairs = [pairs[module[kind].format(i=i)] for i in range(config.num_layers)]
        a, b = (np.stack([pair[i].read().astype(np.float32).T for pair in layer_pairs]) for i in (0, 1))
        flat[path + "a"] = a.reshape(-1, *shape[:fan_in], rank)
        flat[path + "b"] = b.reshape(-1, rank, *shape[fan_in:])
        flat[path + "scale"] = np.full(config.num_layers, scale, np.float32)
    return flat
