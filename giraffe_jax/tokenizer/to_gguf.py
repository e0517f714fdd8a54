"""The keys of a GGUF file from which llama.cpp (and `tokenizer.gguf`) builds a tokenizer that gives the same ids.

llama.cpp has two kinds of tokenizers for Llamas: byte-level BPE, with a choice of named pre-tokenizers, and
SentencePiece BPE. Others are rejected: a similar tokenizer would silently give other ids.
"""

import json
from collections.abc import Mapping
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer.base import Tokenizer
from giraffe_jax.tokenizer.directory import GENERATION, TEMPLATE
from giraffe_jax.tokenizer.gguf import GPT2, PRE_TOKENIZERS, SAMPLING, WHOLE_WORDS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the format
LOWEST = -1e9  # the score of tokens that no merge makes


def describe(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Returns the tokenizer.* keys of a header; ids below vocab_size that the tokenizer lacks become unused tokens.

    Raises:
      ConfigError: a tokenizer with a feature that llama.cpp does not support; the message names it.
    """
    files = tokenizer.files()
    if "tokenizer.json" in files:
        kind, tokens, types, fields = _from_json(json.loads(files["tokenizer.json"]))
    elif "tokenizer.model" in files:
        kind, tokens, types, fields = _from_sentencepiece(files["tokenizer.model"])
    else:
        raise ConfigError(f"tokenizer: a {type(tokenizer).__name__} has no description that llama.cpp could read.")
    missing = range(len(tokens), vocab_size)
    tokens += [f"[PAD{i}]" for i in missing]
    types += [UNUSED for _ in missing]
    if "scores" in fields:
        fields["scores"] += [LOWEST for _ in missing]
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    if settings.get("split_special_tokens"):
        raise ConfigError("tokenizer: split_special_tokens is true; llama.cpp never splits special tokens.")
    unknown = next((i for i, t in enumerate(types) if t == UNKNOWN), None)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "unknown_token_id": unknown}
    ids |= _further_ends(tokenizer)
    fields |= {k: i for k, i in ids.items() if i is not None} | {"add_bos_token": bool(tokenizer.prefix)}
    keys = dict(model=kind, tokens=tokens, token_type=types) | fields
    templates = _templates(files, settings.get("chat_template"))
    generation = json.loads(files.get(GENERATION, b"{}"))
    sampling = {k: generation.get(ours) for k, (ours, _) in SAMPLING.items()} if generation.get("do_sample") else {}
    sampling = {k: SAMPLING[k][1](v) for k, v in sampling.items() if v is not None}
    return {f"tokenizer.ggml.{k}": v for k, v in keys.items() if v != []} | templates | sampling


def _further_ends(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the end tokens besides `eos_id` under the two further keys that a GGUF file has for them."""
    names, further = ("eot_token_id", "eom_token_id"), [i for i in tokenizer.end_ids if i != tokenizer.eos_id]
    if len(further) > len(names):
        raise ConfigError(
            f"tokenizer: {len(tokenizer.end_ids)} end tokens, {list(tokenizer.end_ids)}; a GGUF file names three (eos, "
            "eot, eom). Take some out of eos_token_id in generation_config.json."
        )
    return dict(zip(names, further, strict=False))


def _templates(files: Mapping[str, bytes], chat_template: Any) -> dict[str, str]:
    """Returns the chat templates: of chat_template.jinja, else the config's one text or list of named ones."""
    if TEMPLATE in files:
        return {"tokenizer.chat_template": files[TEMPLATE].decode()}
    if isinstance(chat_template, str):
        return {"tokenizer.chat_template": chat_template}
    named = {t["name"]: t["template"] for t in chat_template or []}
    keys = {name: "tokenizer.chat_template" + f".{name}" * (name != "default") for name in named}
    return {keys[name]: text for name, text in named.items()}


def _from_json(parts: Mapping[str, Any]) -> tuple[str, list[str], list[int], dict[str, Any]]:
    """Returns (kind, tokens, token types, further keys) of the content of a tokenizer.json."""
    model = parts["model"]
    if model.get("type") != "BPE":
        raise ConfigError(f"tokenizer: a {model.get('type')} model; for Llamas llama.cpp supports only BPE.")
    vocab: dict[str, int] = dict(model["vocab"])
    added = {t["id"]: t for t in parts.get("added_tokens") or []}
    vocab |= {t["content"]: i for i, t in added.items()}
    for token in added.values():
        odd = [k for k in ("lstrip", "rstrip", "single_word") if token.get(k)]
        if odd:
            raise ConfigError(
                f"tokenizer: added token {token['content']!r} has {' and '.join(odd)}, which llama.cpp does not "
                "support. A file without the tokenizer (--no-tokenizer) takes token ids."
            )
    by_id = {i: token for token, i in vocab.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id, default=-1) + 1)]
    merges = [m.split(" ", 1) if isinstance(m, str) else list(m) for m in model.get("merges") or []]
    pieces = bool(model.get("byte_fallback"))
    types = [NORMAL if i in by_id else UNUSED for i in range(len(tokens))]
    for i, token in enumerate(tokens):
        if pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
        if i in added:
            types[i] = CONTROL if added[i]["special"] else USER_DEFINED
        if pieces and token == model.get("unk_token"):
            types[i] = UNKNOWN
    if pieces:
        return "llama", tokens, types, dict(scores=_scores(tokens, merges), add_space_prefix=_space_prefix(parts))
    pre = _pre_tokenizer(parts, bool(merges), bool(model.get("ignore_merges")))
    return "gpt2", tokens, types, dict(pre=pre, merges=[" ".join(pair) for pair in merges])


def _from_sentencepiece(content: bytes) -> tuple[str, list[str], list[int], dict[str, Any]]:
    """Returns the same for a SentencePiece model, whose scores and token types a GGUF file takes as they are."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model: Any = pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    if model.trainer_spec.model_type != 2 or model.normalizer_spec.precompiled_charsmap:
        raise ConfigError(
            "tokenizer: a SentencePiece model that is not BPE, or that normalises text; llama.cpp's Llamas do neither."
        )
    fields = dict(scores=[p.score for p in model.pieces], add_space_prefix=model.normalizer_spec.add_dummy_prefix)
    return "llama", [p.piece for p in model.pieces], [p.type for p in model.pieces], fields


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Returns a score for each token such that the order by score, highest first, is the order of `merges`."""
    rank: dict[str, int] = {}
    for pair in merges:
        rank.setdefault("".join(pair), len(rank))
    return [-float(rank[token]) if token in rank else LOWEST for token in tokens]


def _space_prefix(parts: Mapping[str, Any]) -> bool:
    """Returns whether a space is put before every text. Raises ConfigError for a tokenizer that does more than this and
    writing spaces as U+2581."""
    steps = _steps(parts.get("normalizer"), "normalizers")
    before = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    if [s["type"] for s in before] == ["Metaspace"] and not steps and before[0].get("split") is False:
        if (scheme := before[0].get("prepend_scheme")) == "never":
            return False
        raise ConfigError(
            f"tokenizer: a space comes in front of a text that begins with none (prepend_scheme {scheme!r}); llama.cpp "
            "puts one in front of every text, and after every added token. With a Prepend normalizer in "
            "tokenizer.json, tokenizer_class 'PreTrainedTokenizerFast' does the same. A file without the tokenizer "
            "(--no-tokenizer) takes token ids."
        )
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if not before and steps[-1:] == [replaced] and [s["type"] for s in steps[:-1]] in ([], ["Prepend"]):
        return len(steps) == 2
    raise ConfigError(
        f"tokenizer: normalizers {[s['type'] for s in steps]} and pre-tokenizers {[s['type'] for s in before]} before "
        "pieces with byte fallback; llama.cpp writes spaces as U+2581, with or without one in front, and does no more."
    )


def _pre_tokenizer(parts: Mapping[str, Any], merges: bool, whole_words: bool) -> str:
    """Returns llama.cpp's name of the pre-tokenizer of a byte-level BPE. Raises ConfigError if it has none."""
    steps = _steps(parts.get("normalizer"), "normalizers")
    if steps:
        raise ConfigError(f"tokenizer: normalizer {steps[0]['type']}; llama.cpp's byte-level BPE changes no text.")
    before = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    if not before or before[-1]["type"] != "ByteLevel" or before[-1].get("add_prefix_space"):
        raise ConfigError(
            f"tokenizer: pre-tokenizers {[s['type'] for s in before]}; llama.cpp's BPE ends with ByteLevel, without a "
            "space in front, or has byte fallback."
        )
    if not merges:  # then the split does not matter
        return "gpt-2"
    splits = tuple(_expression(s) for s in before[:-1]) + ((GPT2,) if before[-1].get("use_regex", True) else ())
    for name, known in PRE_TOKENIZERS.items():
        if known == splits and (name in WHOLE_WORDS) == whole_words:
            return name
    raise ConfigError(
        f"tokenizer: it splits a text by {list(splits)}, ignore_merges {whole_words}; this is none of llama.cpp's "
        f"pre-tokenizers that are known here: {', '.join(PRE_TOKENIZERS)}. A file without the tokenizer "
        "(--no-tokenizer) takes token ids."
    )


def _expression(step: Mapping[str, Any]) -> str:
    if step["type"] == "Digits" and step.get("individual_digits"):
        return r"\p{N}"
    if step["type"] == "Split" and step["behavior"] in ("Isolated", "isolated") and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"<{step['type']}>"


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Returns a list of the steps of a normalizer or pre-tokenizer, a sequence or a single step."""
    if step is None:
        return []
    return [dict(s) for s in step[inner]] if step["type"] == "Sequence" else [dict(step)]
