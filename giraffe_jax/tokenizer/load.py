"""Loads a tokenizer from the files of a directory, as transformers does, or rejects it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer import classes, directory
from giraffe_jax.tokenizer.base import JsonTokenizer, Tokenizer
from giraffe_jax.tokenizer.files import read_json
from giraffe_jax.tokenizer.pieces import SENTENCEPIECE, SentencePieceTokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face directory, a tokenizer.json, a SentencePiece .model or a .gguf file.

    Raises:
      FileNotFoundError: the path does not exist.
      ConfigError: it is not a tokenizer that can be read; the message names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"tokenizer: no such file or directory: {path}.")
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        names = ", ".join(sorted(p.name for p in path.iterdir())[:20]) or "nothing"
        raise ConfigError(f"{path}: no tokenizer.json or tokenizer.model in it; it holds {names}.")
    if path.suffix == ".json":
        return _load_json(path)
    if path.suffix == ".model":
        return _load_model(path)
    if path.suffix == ".gguf":
        from giraffe_jax.tokenizer import gguf

        return gguf.tokenizer(gguf.open_file(path))
    raise ConfigError(f"{path}: not a tokenizer; allowed are tokenizer.json, a SentencePiece .model, a .gguf file.")


def _load_json(path: Path) -> JsonTokenizer:
    from tokenizers import Tokenizer

    read_json(path)
    try:
        tok = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise ConfigError(f"{path}: the tokenizers library cannot read it: {e}.") from e
    parts = json.loads(tok.to_str())
    config, added = directory.read_config(path.parent), parts["added_tokens"]
    steps = json.dumps(parts["pre_tokenizer"])
    classes.check_class(path, parts, config)
    if classes.class_of(config) != classes.LLAMA or '"ByteLevel"' not in steps:
        config = _named(config)
        if classes.is_llama(config):
            built = classes.as_llama(parts["model"]["vocab"], parts["model"]["merges"], config)
            if classes.class_of(config) == classes.CODE_LLAMA:  # transformers always adds it, whatever the files say
                config["add_bos_token"] = True
            else:
                built.post_processor = tok.post_processor
            tok = built
    return _finished(tok, path.parent, config, added)


def _named(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config, with the special tokens of its class where it has none."""
    return {**classes.NAMES.get(classes.class_of(config), {}), **config}


def _load_model(path: Path) -> Tokenizer:
    """Returns a SentencePiece model: read by the sentencepiece library if it is alone, else with the files beside it by
    the rules of transformers."""
    folder = path.parent
    config, beside = directory.read_config(folder), directory.kept_files(folder)
    add_bos, ends = config.get("add_bos_token") is not False, directory.end_ids(folder, None)
    plain = SentencePieceTokenizer(path, add_bos, beside=beside, ends=ends)
    names = (directory.CONFIG, directory.MAP, directory.ADDED)
    if config.get(SENTENCEPIECE) is True or not any((folder / name).is_file() for name in names):
        return plain
    config = _named({"add_bos_token": True} | config)
    if classes.is_llama(config) and (built := classes.from_pieces(path.read_bytes(), config)):
        return _finished(built[0], folder, config, [], built[1])
    directory.refuse_added(path, config, plain.specials)
    return plain


def _finished(
    tok: Any,
    folder: Path,
    config: dict[str, Any],
    added: list[dict[str, Any]],
    pieces: Sequence[dict[str, Any]] | None = None,
) -> JsonTokenizer:
    """Returns the tokenizer with its added tokens, its begin and end tokens and the files that exports keep."""
    bos, eos = (_special(tok, folder, config, name) for name in ("bos", "eos"))
    directory.add_tokens(tok, folder, config, added, pieces)
    config = directory.plain_config(config)
    tok.encode_special_tokens = config.get("split_special_tokens") is True
    eos_id = None if eos is None else tok.token_to_id(eos)
    ends = directory.end_ids(folder, eos_id)
    return JsonTokenizer(tok, bos=bos, eos=eos, config=config, beside=directory.kept_files(folder), ends=ends)


def _special(tok: Any, directory: Path, config: dict[str, Any], name: str) -> str | None:
    """Returns the begin or end token: from tokenizer_config.json, else from config.json by its (first) id."""
    token = config.get(f"{name}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and not isinstance(token, str):
        raise ConfigError(f"{directory / 'tokenizer_config.json'}: {name}_token must be text, got {str(token)[:40]}.")
    if token is not None or f"{name}_token" in config:
        return token
    if not (directory / "config.json").is_file():
        return None
    ids = read_json(directory / "config.json").get(f"{name}_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return tok.id_to_token(first) if isinstance(first, int) and first >= 0 else None
