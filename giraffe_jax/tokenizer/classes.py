"""`tokenizer_class`: transformers rebuilds some classes without regard to tokenizer.json. Llama's is rebuilt here too;
of the others, only those that agree with tokenizer.json are accepted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer.directory import CONFIG

LLAMA, CODE_LLAMA = "LlamaTokenizer", "CodeLlamaTokenizer"
AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")  # use tokenizer.json as it is
# What other classes build, as [normalizer, pre_tokenizer] of tokenizer.json, and the special tokens that they name.
_BYTES = '{"type": "ByteLevel", "add_prefix_space": PREFIX, "use_regex": true}'
_BUILT = {"GPT2Tokenizer": f"[null, {_BYTES}]", "GPTNeoXTokenizer": f'[{{"type": "NFC"}}, {_BYTES}]'}
_END = {key: "<|endoftext|>" for key in ("bos_token", "eos_token", "unk_token")}
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
INFILLING = dict(  # Code Llama's; here `fill_token` is ordinary text: no infilling
    prefix_token="▁<PRE>", middle_token="▁<MID>", suffix_token="▁<SUF>", eot_token="▁<EOT>", fill_token="<FILL_ME>"
)
NAMES: Mapping[str, Mapping[str, str]] = {
    LLAMA: _LLAMA_NAMES,
    CODE_LLAMA: _LLAMA_NAMES | INFILLING,
    "GPT2Tokenizer": _END,
    "GPTNeoXTokenizer": _END | {"pad_token": "<|padding|>"},
}


def class_of(config: Mapping[str, Any]) -> str:
    """Returns `tokenizer_class` without its suffix "Fast", which makes no difference; "" if there is none."""
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def is_llama(config: Mapping[str, Any]) -> bool:
    """Returns whether transformers 5 rebuilds the tokenizer as a Llama's, from vocabulary and merges alone."""
    return class_of(config) in (LLAMA, CODE_LLAMA)


def check_class(file: Path, parts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ConfigError if transformers may build another tokenizer from `tokenizer_class` than from tokenizer.json
    (`parts`)."""
    name, model = class_of(config), parts["model"]
    llama = model["type"] == "BPE" and (name == LLAMA or (name == CODE_LLAMA and "<unk>" in model["vocab"]))
    if name in AS_IT_IS or (llama and all(config.get(k, v) == v for k, v in INFILLING.items())):
        return
    cause = "its rule is not known here"
    if name in _BUILT:
        steps = json.dumps([parts["normalizer"], _without(parts["pre_tokenizer"], "trim_offsets")])
        prefix = json.dumps(config.get("add_prefix_space") is True)
        plain = model["type"] == "BPE" and not any(model.get(k) for k in ("unk_token", "ignore_merges", "dropout"))
        if plain and json.loads(steps) == json.loads(_BUILT[name].replace("PREFIX", prefix)):
            return
        cause = "it gives other ids"
    raise ConfigError(
        f"{file.parent / CONFIG}: tokenizer_class is {config['tokenizer_class']!r}, by which transformers may build "
        f"another tokenizer than {file.name} says: {cause}. For the ids of {file.name} write 'PreTrainedTokenizerFast'."
    )


def _without(step: Any, key: str) -> Any:
    if isinstance(step, list):
        return [_without(s, key) for s in step]
    return {k: _without(v, key) for k, v in step.items() if k != key} if isinstance(step, dict) else step


def as_llama(vocab: Mapping[str, int], merges: list[Any], config: Mapping[str, Any]) -> Any:
    """Returns the `tokenizers.Tokenizer` that transformers builds for LlamaTokenizer, without added tokens.

    A space is put before the text (`legacy` false, the default), before each part between added tokens (`legacy` true),
    or nowhere (`add_prefix_space` false). CodeLlamaTokenizer ignores `legacy`, and has an unknown token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pairs: list[Any] = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    code = class_of(config) == CODE_LLAMA
    unknown = {"unk_token": "<unk>"} if code else {}
    tok = Tokenizer(models.BPE(vocab=dict(vocab), merges=pairs, fuse_unk=True, byte_fallback=True, **unknown))
    prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if config.get("legacy") and not code else "first"
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tok.decoder = decoders.Sequence(undo + [decoders.Strip(content=" ", left=1)] * (prefix or code))
    return tok


def from_pieces(content: bytes, config: Mapping[str, Any]) -> tuple[Any, list[dict[str, Any]]] | None:
    """Returns (tokenizer without added tokens, the model's own added tokens) of a SentencePiece model, None if it is
    not BPE. Like transformers, it does not normalise the text, even if the model says so.
    """
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model: Any = pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    if model.trainer_spec.model_type != 2:
        return None
    vocab = {p.piece: i for i, p in enumerate(model.pieces)}
    merges = [
        (i, n, len(piece) - n, (piece[:n], piece[n:]))
        for piece, i in vocab.items()
        for n in range(1, len(piece))
        if piece[:n] in vocab and piece[n:] in vocab
    ]
    added = [dict(content=p.piece, normalized=False, special=p.type == 3) for p in model.pieces if p.type in (3, 4)]
    return as_llama(vocab, [m[3] for m in sorted(merges)], config), added
