"""The tokenizer protocol, and two tokenizers: plain bytes, and a tokenizer.json by the tokenizers library."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer import directory

# Byte-level BPE (GPT-2) writes the 256 bytes as printable characters: printable Latin-1 as itself, the other 68 bytes
# as the code points from 256 on, in order.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [b for b in range(256) if b not in set(_PRINTABLE)]
BYTE_CHARACTERS = [chr(b) if b in set(_PRINTABLE) else chr(256 + _OTHERS.index(b)) for b in range(256)]

LONG_TEXT = 2**10  # characters from which encode_batch_fast, which computes no offsets, is faster


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the project requires of a tokenizer.

    `prefix` are the ids that every text of this model begins with: its begin token, or none. `eos_id` ends a document.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    prefix: tuple[int, ...]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end a generated text; `eos_id` is the first."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that determines the ids of a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without begin and end tokens."""
        ...

    def decode(self, ids: Any) -> str:
        """Returns the text of ids; ids outside the vocabulary are left out."""
        ...

    def files(self) -> dict[str, bytes]:
        """Returns the tokenizer's files for a Hugging Face directory, by name."""
        ...


class ByteTokenizer:
    """Bytes of UTF-8 as ids 0..255, then `<s>` 256 and `</s>` 257: no files, no training, any text."""

    vocab_size: int = 258
    bos_id: int | None = 256
    eos_id: int | None = 257
    prefix: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end token, unless `eos_id` has been set to None."""
        return () if self.eos_id is None else (self.eos_id,)

    @property
    def fingerprint(self) -> str:
        """The same for all byte tokenizers."""
        return hashlib.sha256(b"giraffe bytes 258").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of a text; a lone surrogate becomes its three bytes."""
        return list(text.encode("utf-8", errors="surrogatepass"))

    def decode(self, ids: Any) -> str:
        """Returns the text of the ids that are bytes; invalid UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= int(i) < 256).decode("utf-8", errors="replace")

    def files(self) -> dict[str, bytes]:
        """Returns the files of a byte-level BPE without merges, which gives the same ids."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(BYTE_CHARACTERS)}, merges=[]))
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tok.decoder = decoders.ByteLevel()
        tok.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
        return JsonTokenizer(tok, bos="<s>", eos="</s>").files()


class JsonTokenizer:
    """A `tokenizers.Tokenizer` (the content of a tokenizer.json), whatever it was read from.

    As in transformers 5, the file's post-processor decides whether texts begin with the begin token; without one,
    `add_bos_token` of tokenizer_config.json does.
    """

    def __init__(
        self,
        tok: Any,
        *,
        bos: str | None = None,
        eos: str | None = None,
        config: dict[str, Any] | None = None,
        beside: Mapping[str, bytes] = {},
        ends: Sequence[int] = (),
    ):
        """`beside`: more files, by name, for `files()`; `ends`: ids besides `eos` that end a generated text."""
        from tokenizers.processors import TemplateProcessing

        tok.no_truncation()
        tok.no_padding()
        self._tok = tok
        vocab = tok.get_vocab(with_added_tokens=True)
        for name, token in (("bos_token", bos), ("eos_token", eos)):
            if token is not None and token not in vocab:
                raise ConfigError(f"tokenizer: {name} is {token!r}, which is not in its vocabulary of {len(vocab)}.")
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.bos_id = None if bos is None else vocab[bos]
        self.eos_id = None if eos is None else vocab[eos]
        self.end_ids: tuple[int, ...] = directory.one_each(self.eos_id, ends)
        self._beside = directory.with_ends(beside, self.end_ids)
        tokens = {"bos_token": bos, "eos_token": eos}
        tokens = {k: v for k, v in tokens.items() if v is not None}
        self._config = config or {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        adds = self._config.get("add_bos_token") is True
        if tok.post_processor is not None:
            adds = tok.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]
        elif adds and bos is not None:  # as a post-processor, since transformers 5 reads nothing else
            tok.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, self.bos_id)])
        self.prefix: tuple[int, ...] = (self.bos_id,) if adds and self.bos_id is not None else ()
        self._config = self._config | {"add_bos_token": bool(self.prefix)}

    @property
    def fingerprint(self) -> str:
        """sha256 of the parts of tokenizer.json that determine the ids of a text."""
        parts = json.loads(self._tok.to_str())
        kept = {k: parts.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        kept |= {"split_special_tokens": True} if self._tok.encode_special_tokens else {}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without begin and end tokens."""
        if len(text) < LONG_TEXT:
            return self._tok.encode(text, add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, by the library's own threads (one, with TOKENIZERS_PARALLELISM=false)."""
        return [encoding.ids for encoding in self._tok.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns (ids, offsets) of each text: the ids of `encode_batch`, and the characters [start, stop) of each."""
        return [
            (encoding.ids, encoding.offsets)
            for encoding in self._tok.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Any) -> str:
        """Returns the text of ids, special tokens included; ids outside the vocabulary are left out."""
        return self._tok.decode([i for i in map(int, ids) if 0 <= i < self.vocab_size], skip_special_tokens=False)

    def files(self) -> dict[str, bytes]:
        """Returns tokenizer.json, tokenizer_config.json and the files that were passed as `beside`."""
        config = json.dumps(self._config, indent=2, ensure_ascii=False)
        return {"tokenizer.json": self._tok.to_str().encode(), "tokenizer_config.json": config.encode(), **self._beside}


def begun(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids of a text with those of `tokenizer.prefix` in front.

    Warns if the text itself begins with the begin token: it then has two, as in transformers.
    """
    prefix = tokenizer.prefix
    if prefix and tuple(ids[: len(prefix)]) == prefix:
        warnings.warn(
            f"a prompt begins with the begin token {tokenizer.decode(prefix)!r}, which is added to every text: it now "
            "has two, as in transformers, and models were not trained on that. Leave it out of the text.",
            stacklevel=3,
        )
    return (*prefix, *ids)


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, as `encode` gives them; on all cores if the tokenizer has an `encode_batch`."""
    together = getattr(tokenizer, "encode_batch", None)
    return [tokenizer.encode(text) for text in texts] if together is None else together(texts)
