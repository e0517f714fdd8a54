"""The files of a tokenizer in a Hugging Face directory, up to six, read by the rules of transformers 5.

Added tokens are in tokenizer.json, in tokenizer_config.json (`added_tokens_decoder`, the named special tokens,
`extra_special_tokens`) and, unless `added_tokens_decoder` is there, in special_tokens_map.json and added_tokens.json. A
`tokenizer_class` of Llama's rebuilds the pre-tokenizer from a few keys, without regard to tokenizer.json. Settings by
which the ids could differ from those of transformers are rejected by name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
_NAMED = tuple(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
_FIELDS = {"content", "lstrip", "rstrip", "normalized", "single_word", "special"}
# Keys that change ids and are not applied: allowed at these values only, and why.
_ONLY_AT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "auto_map": ((None, {}), "a tokenizer with its own code is not run"),
    "sp_model_kwargs": ((None, {}), "sampling of pieces and other options of sentencepiece are not applied"),
    "do_lower_case": ((None, False), "letters are not changed"),
    "dropout": ((None, 0, 0.0), "merges are never dropped"),
    "fix_mistral_regex": ((None, False), "the expressions are those of tokenizer.json"),
    "gguf_file": ((None,), "give the GGUF file itself"),
}
_EXTRA, _OLD = "extra_special_tokens", "additional_special_tokens"  # the second is read if the first is absent
_BOOLEANS = ("add_prefix_space", "split_special_tokens", "legacy", "add_bos_token", "add_eos_token")


def read_config(directory: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json ({} if there is none), with the keys that special_tokens_map.json adds to it.

    Raises:
      ConfigError: a key that changes ids has a value that is not applied here.
    """
    from giraffe_jax.tokenizer.files import read_json

    file, model = directory / CONFIG, directory / "config.json"
    config = read_json(file) if file.is_file() else {}
    model_config = read_json(model) if model.is_file() else {}
    if model_config.get("model_type") == "mistral" and (directory / "tokenizer.json").is_file():
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers ignores tokenizer_class here
    elif isinstance(model_config.get("tokenizer_class"), str):
        config = {"tokenizer_class": model_config["tokenizer_class"]} | config
    for key, (allowed, why) in _ONLY_AT.items():
        if key in config and config[key] not in allowed:
            raise ConfigError(f"{file}: {key} is {str(config[key])[:80]!r}, allowed is {allowed[-1]!r}: {why}.")
    for key in _BOOLEANS:
        if config.get(key) not in (None, True, False) or isinstance(config.get(key), float):
            raise ConfigError(f"{file}: {key} must be true or false, got {str(config[key])[:40]!r}.")
    if _OLD in config and not config.get(_EXTRA):
        config[_EXTRA] = config.pop(_OLD)
    if "added_tokens_decoder" not in config and (directory / MAP).is_file():
        special_map, before = read_json(directory / MAP), config.get(_EXTRA)
        if isinstance(before, list) and isinstance(special_map.get(_EXTRA), list):
            special_map[_EXTRA] = before + [t for t in special_map[_EXTRA] if t not in before]
        config |= special_map
    return config


def add_tokens(
    tok: Any, directory: Path, config: Mapping[str, Any], own: list[dict], pieces: Sequence[dict] | None = None
) -> None:
    """Adds all added tokens of a directory's files to a `tokenizers.Tokenizer`, in the order of transformers 5.

    Args:
      own: the added tokens of tokenizer.json.
      pieces: the added tokens of a SentencePiece model; None for a tokenizer.json.

    Raises:
      ConfigError: an entry that is not a token, or a token that gets another id than the files give it.
    """
    by_id = _declared(directory, config, own)
    by_text = {token.content: token for token in by_id.values()}
    named = {k: v for k, v in config.items() if k in _NAMED or (k.endswith("_token") and isinstance(v, str))}
    extra = config.get(_OLD) if pieces is None else pieces
    extra = (config[_EXTRA] if _EXTRA in config else extra) or []
    if isinstance(extra, dict):
        named, extra = named | extra, []
    if not isinstance(extra, Sequence) or isinstance(extra, str):
        raise ConfigError(f"{directory / CONFIG}: {_EXTRA} must be a list of tokens, got {str(extra)[:40]!r}.")
    where = directory / CONFIG
    special = [_token(v, f"{where}: {k}", special=True) for k, v in named.items() if v is not None]
    special = [by_text.get(t.content, t) for t in special]
    extra_tokens = [_token(v, f"{where}: extra_special_tokens", special=True) for v in extra]
    known = set(by_text) | {t.content for t in tok.get_added_tokens_decoder().values()}
    for token in special:
        token.special = True
    tok.add_tokens([*by_id.values(), *(t for t in [*special, *extra_tokens] if t.content not in known)])
    tok.add_special_tokens([*special, *extra_tokens])
    for i, token in by_id.items():
        if tok.token_to_id(token.content) != i:
            raise ConfigError(
                f"{directory}: its files give the added token {token.content!r} id {i}, but it gets "
                f"{tok.token_to_id(token.content)}: added ids follow the vocabulary, which has "
                f"{tok.get_vocab_size(with_added_tokens=False)} entries, without a gap, and a token has one id."
            )


def _declared(directory: Path, config: Mapping[str, Any], own: list[dict[str, Any]]) -> dict[int, Any]:
    """Returns the added tokens to which a file gives an id, as {id: AddedToken}, by increasing id."""
    from giraffe_jax.tokenizer.files import read_json

    by_id: dict[int, Any] = {}
    if "added_tokens_decoder" in config:
        where = f"{directory / CONFIG}: added_tokens_decoder"
        declared = config["added_tokens_decoder"]
        if not isinstance(declared, dict):
            raise ConfigError(f"{where} must be a mapping of ids to tokens, got {str(declared)[:40]!r}.")
        for key, value in declared.items():
            if not key.isdecimal() or not isinstance(value, dict):
                raise ConfigError(f"{where} must map ids to tokens, got {key[:20]!r}: {str(value)[:40]!r}.")
            by_id[int(key)] = _token(value, where)
    else:
        file = directory / ADDED
        specials = [config.get(k) for k in _NAMED]
        specials += [*(config.get(_EXTRA) or [])]  # not those of the older key in special_tokens_map.json
        texts = {v.get("content") if isinstance(v, dict) else v for v in specials}
        for text, i in (read_json(file) if file.is_file() else {}).items():
            if not isinstance(i, int) or isinstance(i, bool) or i < 0:
                raise ConfigError(f"{file}: the id of {text[:40]!r} must be a whole number from 0, got {str(i)[:40]}.")
            by_id[i] = _token({"content": text, "normalized": text not in texts}, str(file), special=text in texts)
    if "added_tokens_decoder" not in config:
        by_id |= {t["id"]: _token({k: t[k] for k in t if k != "id"}, str(directory)) for t in own}
    return dict(sorted(by_id.items()))


def _token(value: Any, where: str, special: bool = False) -> Any:
    """Returns the AddedToken of a JSON value: a token's text, or a mapping of its fields."""
    from tokenizers import AddedToken

    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str) or not fields["content"]:
        raise ConfigError(f"{where}: expected a token's text, or a mapping with 'content', got {str(value)[:60]!r}.")
    fields = {k: v for k, v in fields.items() if k in _FIELDS}
    flags = {"special": special} | {k: v for k, v in fields.items() if k != "content"}
    if not all(isinstance(v, bool) for v in flags.values()):
        raise ConfigError(f"{where}: {fields['content']!r}: true or false is expected of each of {', '.join(flags)}.")
    return AddedToken(fields["content"], **flags)


def refuse_added(path: Path, config: Mapping[str, Any], own: set[str]) -> None:
    """Raises ConfigError for added tokens or keys that cannot be applied to a SentencePiece model that the
    sentencepiece library reads.

    Args:
      own: the model's control and unknown pieces, which may be listed as added tokens.
    """
    tokens = [*_declared(path.parent, config, []).values()]
    tokens += [_token(t, str(path.parent)) for key in (_EXTRA, _OLD) for t in config.get(key) or []]
    if beyond := [t.content for t in tokens if t.content not in own]:
        raise ConfigError(
            f"{path.parent}: added token {beyond[0]!r} beside {path.name}: added tokens are supported for BPE models "
            "only, with tokenizer_class LlamaTokenizer in tokenizer_config.json. Set that, or convert to "
            "tokenizer.json."
        )
    for key, value in (("add_prefix_space", False), ("split_special_tokens", True)):
        if config.get(key) is value:
            raise ConfigError(
                f"{path.parent / CONFIG}: {key} is {value} beside {path.name}, which is read as sentencepiece does; "
                "remove the key or convert it to tokenizer.json."
            )


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer_config.json to write with a tokenizer.json that has all added tokens: it has special tokens
    as text."""
    kept = {k: v for k, v in config.items() if k != "added_tokens_decoder"}
    for key, value in kept.items():
        if isinstance(value, dict) and key.endswith("_token"):
            kept[key] = value.get("content")
        if key in (_EXTRA, _OLD) and isinstance(value, list):
            kept[key] = [t.get("content") if isinstance(t, dict) else t for t in value]
    return kept


def end_ids(directory: Path, eos_id: int | None) -> tuple[int, ...]:
    """Returns the ids that end a generated text: the end token, and those of generation_config.json and config.json."""
    from giraffe_jax.tokenizer.files import read_json

    ends: list[int] = []
    for file in (directory / GENERATION, directory / "config.json"):
        ids = read_json(file).get("eos_token_id") if file.is_file() else None
        for i in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if isinstance(i, bool) or not isinstance(i, int):
                raise ConfigError(f"{file}: eos_token_id must be ids, got {str(ids)[:60]}.")
            ends += [i] if i >= 0 else []  # -1 means no end token
    return one_each(eos_id, ends)


def one_each(eos_id: int | None, further: Sequence[int]) -> tuple[int, ...]:
    """Returns the end token, if there is one, and further ids, without duplicates."""
    all_ids: list[int] = [*([] if eos_id is None else [eos_id]), *further]
    return tuple(dict.fromkeys(all_ids))


def kept_files(directory: Path) -> dict[str, bytes]:
    """Returns generation_config.json and chat_template.jinja, if they are there, for exports to keep."""
    from giraffe_jax.tokenizer.files import read_json

    files = {}
    for name in (GENERATION, TEMPLATE):
        if (directory / name).is_file():
            files[name] = (directory / name).read_bytes()
    if GENERATION in files:
        read_json(directory / GENERATION)  # its error names the file
    return files


def with_ends(files: Mapping[str, bytes], ends: tuple[int, ...]) -> dict[str, bytes]:
    """Returns the files with all end tokens in generation_config.json, which is added if there are several."""
    if len(ends) < 2 and GENERATION not in files:
        return dict(files)
    settings = json.loads(files.get(GENERATION, b'{"_from_model_config": true}'))
    settings |= {"eos_token_id": list(ends) if len(ends) > 1 else ends[0]} if ends else {}
    return {**files, GENERATION: json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"}
