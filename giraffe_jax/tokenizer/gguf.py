"""The tokenizer inside a GGUF file, built as a `tokenizers.Tokenizer` from its vocabulary, merges and scores.

A GGUF file only names its pre-tokenizer; the regular expressions behind the names are those of llama.cpp
(src/llama-vocab.cpp). A name that is not listed here is rejected, since a wrong split silently gives different ids.
This module also opens GGUF files, for the tokenizer and for the weights.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.tokenizer.base import JsonTokenizer
from giraffe_jax.tokenizer.directory import GENERATION

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The expressions are applied in order, each to the pieces that the one before it made.
PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (_LLAMA3,),
}
# Pre-tokenizers whose pieces are looked up in the vocabulary before any merge (`ignore_merges`).
WHOLE_WORDS = ("llama-bpe",)

# A GGUF file's sampling keys -> (transformers' key, its type).
SAMPLING: Mapping[str, tuple[str, type]] = {
    "general.sampling.temp": ("temperature", float),
    "general.sampling.top_p": ("top_p", float),
    "general.sampling.top_k": ("top_k", int),
    "general.sampling.min_p": ("min_p", float),
    "general.sampling.penalty_repeat": ("repetition_penalty", float),
}

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # token types of the format


class File(NamedTuple):
    """An opened GGUF file: its metadata as plain Python values, and the library's reader for the tensors."""

    path: Path
    metadata: dict[str, Any]
    reader: Any


def open_file(path: str | Path) -> File:
    """Opens a GGUF file, after its structure is checked against its size.

    Raises:
      FileNotFoundError: no such file.
      ConfigError: not GGUF, truncated, corrupted, or a part of a split file.
    """
    try:
        import gguf
    except ImportError as e:
        raise ConfigError(f"{path}: reading GGUF needs `pip install gguf` (the extra giraffe-jax[gguf]).") from e
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such GGUF file: {path}.")
    try:
        with path.open("rb") as f:
            _walk(f, path.stat().st_size)
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError, struct.error) as e:
        raise ConfigError(f"{path}: corrupted GGUF file ({type(e).__name__}: {e}).") from e
    if metadata.get("split.count", 0) > 1:
        raise ConfigError(f"{path}: one of {metadata['split.count']} parts; merge them first (gguf-split --merge).")
    return File(path, metadata, reader)


_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def _walk(f: BinaryIO, size: int) -> None:
    """Checks all lengths in the header of a GGUF file against the file's size.

    The gguf library trusts them: in a damaged file it can loop over an array of 2**60 entries that are not there.
    """

    def left(need: int, label: str) -> None:
        if need > size - f.tell():
            raise ConfigError(
                f"truncated or corrupted GGUF file: {label} needs {need} bytes at byte {f.tell()}, the file has {size}."
            )

    def number(code: str, label: str) -> int:
        left(struct.calcsize("<" + code), label)
        return struct.unpack("<" + code, f.read(struct.calcsize("<" + code)))[0]

    def string(label: str) -> bytes:
        length = number("Q", label)
        left(length, label)
        return f.read(length)

    def value(kind: int, label: str) -> None:
        if kind == _STRING:
            string(label)
        elif kind == _ARRAY:
            item, count = number("I", label), number("Q", label)
            if item in _SCALAR_BYTES:
                left(count * _SCALAR_BYTES[item], label)
                f.seek(count * _SCALAR_BYTES[item], 1)
            else:
                left(count * 8, label)
                for _ in range(count):
                    value(item, label)
        elif kind in _SCALAR_BYTES:
            left(_SCALAR_BYTES[kind], label)
            f.seek(_SCALAR_BYTES[kind], 1)
        else:
            raise ConfigError(f"corrupted GGUF file: {label} has type {kind}; the format has 0 to 12.")

    if size < 24 or f.read(4) != b"GGUF":
        raise ConfigError("not a GGUF file: it does not begin with the letters GGUF.")
    version = number("I", "the version")
    if version not in (2, 3):
        raise ConfigError(f"GGUF version {version}; versions 2 and 3 (little-endian) can be read.")
    tensors, keys = number("Q", "the tensor count"), number("Q", "the metadata count")
    left(12 * keys + 24 * tensors, f"a header of {keys} keys and {tensors} tensors")
    alignment = 32
    for _ in range(keys):
        name = _shown(string("a metadata key"))
        kind, at = number("I", name), f.tell()
        value(kind, name)
        if name == "general.alignment" and kind == 4:
            f.seek(at)
            alignment = number("I", name)
    extents = [_tensor_extent(number, string) for _ in range(tensors)]
    start = f.tell() + (-f.tell()) % max(alignment, 1)
    for name, offset, count in extents:
        if start + offset + count > size:
            raise ConfigError(
                f"truncated GGUF file: tensor {name} ends at byte {start + offset + count}, the file has {size}."
            )


def _shown(name: bytes) -> str:
    """Returns a name for errors, short and printable: in a damaged file it can be megabytes of control characters."""
    text = "".join(c if c.isprintable() else "?" for c in name[:80].decode("utf-8", "replace"))
    return text + "..." * (len(name) > 80)


def _tensor_extent(number: Any, string: Any) -> tuple[str, int, int]:
    """Returns (name, offset in the data section, bytes) of one tensor of the header."""
    import math

    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = _shown(string("a tensor's name"))
    rank = number("I", name)
    if rank > 4:
        raise ConfigError(f"corrupted GGUF file: tensor {name} has {rank} dimensions; at most 4 are possible.")
    shape = [number("Q", name) for _ in range(rank)]
    kind, offset = number("I", name), number("Q", name)
    try:
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ConfigError(f"tensor {name} has type {kind}, which the gguf library does not know.") from None
    return name, offset, math.prod(shape) // block * width


def tokenizer(file: File) -> Any:
    """Returns the tokenizer that a GGUF file describes: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).

    Raises ConfigError, naming the file, for others, and for keys that contradict each other.
    """

    meta, where = file.metadata, str(file.path)
    tokens = meta.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ConfigError(f"{where}: no tokenizer in it (no tokenizer.ggml.tokens).")
    types = meta.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocab = {t: i for i, t in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(types) != len(tokens):
        raise ConfigError(f"{where}: {len(tokens)} tokens, {len(vocab)} of them different, {len(types)} token types.")
    kind = meta.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ConfigError(f"{where}: tokenizer.ggml.model is {kind!r}; allowed are {', '.join(builders)}.")
    tok = builders[kind](meta, tokens, vocab, types, where)
    _add_special(tok, tokens, types)

    def named(key: str) -> str | None:
        i = meta.get(f"tokenizer.ggml.{key}")
        if i is not None and not 0 <= i < len(tokens):
            raise ConfigError(f"{where}: tokenizer.ggml.{key} is {i}, the vocabulary has {len(tokens)} tokens.")
        return None if i is None else tokens[i]

    bos, eos = named("bos_token_id"), named("eos_token_id")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    extras = (("bos_token", bos), ("eos_token", eos), ("unk_token", named("unknown_token_id")))
    config |= {k: v for k, v in extras if v is not None}
    key = "tokenizer.chat_template"
    templates = {k[len(key) + 1 :] or "default": v for k, v in meta.items() if k == key or k.startswith(key + ".")}
    if templates:
        several = [dict(name=name, template=text) for name, text in templates.items()]
        config["chat_template"] = several if templates.keys() != {"default"} else templates["default"]
    # llama.cpp's default, for files without the key.
    default = kind == "llama" or meta.get("tokenizer.ggml.pre") in ("llama3", "llama-v3", "llama-bpe")
    config["add_bos_token"] = bool(meta.get("tokenizer.ggml.add_bos_token", default))
    ends = [vocab[t] for t in map(named, ("eot_token_id", "eom_token_id")) if t is not None]
    generation = {name: kind(meta[key]) for key, (name, kind) in SAMPLING.items() if key in meta}
    if generation:
        generation = {"do_sample": True} | generation
    beside = {GENERATION: json.dumps(generation).encode()} if generation else {}
    return JsonTokenizer(tok, bos=bos, eos=eos, config=config, beside=beside, ends=ends)


def _byte_level(meta: Mapping, tokens: list[str], vocab: dict[str, int], types: list[int], where: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = meta.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        allowed = ", ".join(PRE_TOKENIZERS)
        raise ConfigError(
            f"{where}: pre-tokenizer {name!r} is not known; known are {allowed}.{nearest(name, list(PRE_TOKENIZERS))}"
            " Give a Hugging Face directory with tokenizer.json instead."
        )
    merges = [tuple(m.split(" ", 1)) for m in meta.get("tokenizer.ggml.merges") or []]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=name in WHOLE_WORDS)
    except Exception as e:  # the library raises bare Exception
        raise ConfigError(f"{where}: its vocabulary and merges do not fit together: {e}.") from e
    tok = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in PRE_TOKENIZERS[name]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tok.decoder = decoders.ByteLevel()
    return tok


def _sentencepiece(meta: Mapping, tokens: list[str], vocab: dict[str, int], types: list[int], where: str) -> Any:
    """Returns SentencePiece BPE as a list of merges: every split of a piece into two pieces, best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = meta.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ConfigError(f"{where}: tokenizer.ggml.scores: got {len(scores or [])}, expected one for each token.")
    ranked = []
    for piece, i in vocab.items():
        if types[i] in (1, _USER_DEFINED):
            halves = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
            ranked += [(-scores[i], vocab[a], vocab[b], (a, b)) for a, b in halves if a in vocab and b in vocab]
    merges = [pair for *_, pair in sorted(ranked)]
    unknown = next((tokens[i] for i, t in enumerate(types) if t == _UNKNOWN), None)
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    tok = Tokenizer(model)
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend("▁")] if prefix else []
    tok.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tok.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return tok


def _add_special(tok: Any, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        texts = [t for t, k in zip(tokens, types, strict=True) if k == kind]
        added = [AddedToken(t, normalized=False, special=special) for t in texts]
        if added:
            (tok.add_special_tokens if special else tok.add_tokens)(added)
