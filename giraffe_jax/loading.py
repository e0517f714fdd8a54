"""Loading: config, weights and tokenizer of any source, each array sharded over a mesh.

A source is a Hugging Face directory, a GGUF file, the name of a packaged model, or the workdir of a training run;
"runs/a@1000" and "runs/a@best" name one of its checkpoints.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax import base as frozen
from giraffe_jax import checkpoint, hf, positions, sharding
from giraffe_jax.checkpoint import METHODS, TOKENIZER
from giraffe_jax.config import ConfigError, build, nearest, to_dict
from giraffe_jax.inference import LM
from giraffe_jax.model import ModelConfig, fit_params, init_params, lora, param_axes
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.tokenizer import load_tokenizer, read_json


def load(
    source: str,
    overrides: Mapping[str, Any] = {},
    *,
    base: str | None = None,
    adapters: LoraConfig | None = None,
    tokenizer: str = "",
    mesh: jax.sharding.Mesh | None = None,
) -> LM:
    """Returns the model of any source: Hugging Face directory, GGUF file, packaged name, or workdir of a run.

    Args:
      source: the source. A workdir may name a checkpoint, `runs/a@1000` or `runs/a@best` (of the smallest eval_loss);
        by default its newest undamaged one is read. Adapters are merged into their kernels.
      base: of a PEFT adapter: the Hugging Face directory of its base, if the one that the adapter's config names is not
        here. Of a run that trained only adapters or frequencies: the source that it was trained on, if that has moved.
      adapters: a run's config.lora: a PEFT adapter is kept as LoRA parameters, to continue its training. A run's own
        adapters are merged anyway.
      overrides: ModelConfig keys that replace the source's (positions, dtype, attention...).
      tokenizer: path of another tokenizer; "" takes the source's.
      mesh: the parameters are sharded over it, and each device receives only its shard. None takes one device.

    Raises:
      FileNotFoundError: the source does not exist.
      ConfigError: not a model that can be read, or a checkpoint that is damaged or absent; the message names it.
    """
    where, which = checkpoint.split_source(source)
    if checkpoint.is_workdir(where):
        return _load_workdir(where, which, overrides, tokenizer, mesh, base=base)
    if which:
        raise ConfigError(f"source: {source} names a checkpoint, but {where} is not the workdir of a training run.")
    model = override(hf.read_config(source, base), overrides)  # before anything large is read
    loaded = hf.load(source, base=base, adapters=adapters, param_dtype=model.param_dtype, mesh=mesh)
    loaded_tokenizer = load_tokenizer(tokenizer) if tokenizer else loaded.tokenizer
    if loaded_tokenizer is None:
        raise ConfigError(f"source: {source} has no tokenizer.json or tokenizer.model; name one with config.tokenizer.")
    return LM(model, _fit(model, loaded.params, mesh), loaded_tokenizer)


def read_model(source: str, overrides: Mapping[str, Any] = {}, *, base: str | None = None) -> ModelConfig:
    """Returns the config of the model that `load` would return, without reading weights.

    A Hugging Face directory may have its config.json alone, and a run's workdir no checkpoint yet.

    Raises:
      FileNotFoundError: the source does not exist.
      ConfigError: not a model that can be read; the message names it.
    """
    where, which = checkpoint.split_source(source)
    if checkpoint.is_workdir(where):
        with checkpoint.manager(where) as checkpoints:
            steps = checkpoint.steps(checkpoints)
            if which == "best" or (which and int(which) not in steps) or not steps:
                step = checkpoint.find_step(checkpoints, which, warnings.warn)
            else:  # not find_step, which would verify weights that are not read
                step = int(which) if which else steps[-1]
            values = checkpoint.read_about(checkpoints, step)["model"]
        _check_methods(Path(where) / METHODS, values["positions"])
        return override(build(ModelConfig, values, "model"), overrides)
    file = Path(where) / "config.json"
    if file.is_file() and isinstance(values := read_json(file).get("model"), dict):  # a run that has saved nothing yet
        return override(build(ModelConfig, values, "model"), overrides)
    return override(hf.read_config(source, base), overrides)


def load_unmerged(source: str) -> tuple[LM, LoraConfig]:
    """Returns a run's model with unmerged adapters, and its config.lora.

    Raises:
      ConfigError: the source is not a run's workdir, or the run has no adapters.
    """
    where, which = checkpoint.split_source(source)
    if not checkpoint.is_workdir(where):
        raise ConfigError(f"source: {source} is not the workdir of a training run, so it has no adapter to write.")
    with checkpoint.manager(where) as checkpoints:
        step = checkpoint.find_step(checkpoints, which, warnings.warn)
        adapter_values = checkpoint.read_about(checkpoints, step).get("lora")
    if not adapter_values:
        raise ConfigError(f"source: {where} was trained without adapters (config.lora); export its weights instead.")
    return _load_workdir(where, str(step), {}, "", None, merged=False), build(LoraConfig, adapter_values, "lora")


def _load_workdir(
    source: str,
    which: str,
    overrides: Mapping[str, Any],
    tokenizer: str,
    mesh: jax.sharding.Mesh | None,
    merged: bool = True,
    base: str | None = None,
) -> LM:
    with checkpoint.manager(source) as checkpoints:
        step = checkpoint.find_step(checkpoints, which, warnings.warn)
        metadata = checkpoint.read_about(checkpoints, step)
        frozen_base = frozen.saved(metadata, source, base)
        if frozen_base is None and base is not None:
            raise ConfigError(f"base: {source} is the workdir of a run that has all of its weights; it needs no base.")
        _check_methods(Path(source) / METHODS, metadata["model"]["positions"])
        saved = build(ModelConfig, metadata["model"], "model")
        model = override(saved, overrides)
        saved = dataclasses.replace(saved, param_dtype=model.param_dtype)
        adapters = build(LoraConfig, metadata["lora"], "lora") if metadata.get("lora") else None

        def start(key):
            params = init_params(saved, key)
            return params if adapters is None else lora.add(params, adapters, key)

        stored = checkpoint.saved_tree(checkpoints, step)["params"]
        like = jax.eval_shape(start, jax.random.key(0))
        omitted = frozenset() if frozen_base is None else frozen.left_out(like, jax.tree.map(lambda _: False, like))
        like = frozen.without(like, frozenset(omitted - sharding.paths(stored).keys()))
        # `model.positions` has the learned frequencies already; this leaf is restored only because orbax restores a
        # tree as a whole.
        if "positions" in stored:
            learned = jax.ShapeDtypeStruct((model.head_dim // 2,), jnp.float32)
            like = like | {"positions": {"log_ratio": learned}}
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), like, _placement(saved, like, mesh)
        )
        params = checkpoint.restore(checkpoints, step, {"params": like})["params"]
    params.pop("positions", None)
    if frozen_base is not None:
        config = to_dict(saved)
        base_lm = load(
            frozen_base.source,
            config,
            base=frozen_base.base,
            adapters=adapters,
            tokenizer=str(Path(source) / TOKENIZER),
            mesh=mesh,
        )
        params = frozen.joined(params, base_lm.params)
    if adapters is not None and merged:

        def whole(params):
            return jax.tree.map(lambda x: x.astype(model.param_dtype), lora.merge(params))

        where = _placement(saved, jax.eval_shape(whole, params), mesh)
        params = jax.jit(whole, out_shardings=where)(params)
    return LM(model, _fit(model, params, mesh), load_tokenizer(tokenizer or Path(source) / TOKENIZER))


def _check_methods(saved: Path, scaling: Any) -> None:
    """Raises ConfigError, naming the saved source text, if an own method of the run cannot be imported; warns if the
    imported method is not the one that the run was trained with."""
    if not saved.is_dir():
        return
    try:
        positions.check(scaling)
    except ConfigError as error:
        raise ConfigError(f"{error} The run's version is in {saved}: read it before you let it run here.") from error
    for path, text in positions.sources(scaling).items():
        if (saved / path).is_file() and not positions.same(text, (saved / path).read_text(encoding="utf-8")):
            warnings.warn(f"{path} is not what the run was trained with, which is {saved / path}", stacklevel=4)


def _fit(model: ModelConfig, params: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Returns the model's parameters: the source's, and newly initialised ones that the source lacks; all sharded."""
    fitted = fit_params(model, params, jax.random.key(0))
    return fitted if mesh is None else jax.tree.map(put, fitted, _placement(model, fitted, mesh))


def _placement(model: ModelConfig, shapes: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Returns a sharding for each array: on a mesh by its logical axes, else on one device of this process."""
    if mesh is not None:
        return sharding.shardings(shapes, state_axes(model), mesh)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: single, shapes)


def state_axes(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns the logical axes, by path, of all arrays of a training state: parameters, log_ratio, and those optimizer
    arrays that do not belong to a parameter (the others are found by their path, which ends in the parameter's)."""
    return param_axes(model) | {
        "positions/log_ratio": ("features",),
        "key": ("features",),
        "ns_coeffs": ("features",),  # Muon's polynomial
    }


def put(x: Any, where: jax.sharding.Sharding) -> jax.Array:
    """Returns `x` with the sharding `where`. In a job of several processes each must hold all of `x`, and places only
    its own shards."""
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
        return x
    if jax.process_count() == 1:
        return jax.device_put(x, where)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda at: host[at])


def override(model: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Returns the model config with some keys replaced, checked like any config."""
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    unknown = [k for k in overrides if k not in known]
    if unknown:
        hint = nearest(unknown[0], sorted(known))
        raise ConfigError(f"model: unknown {unknown}; ModelConfig takes {', '.join(sorted(known))}.{hint}")
    return build(ModelConfig, to_dict(model) | {k: overrides[k] for k in overrides}, "model")
