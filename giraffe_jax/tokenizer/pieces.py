"""A SentencePiece model as the sentencepiece library reads it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer.directory import one_each, with_ends

SENTENCEPIECE = "read_by_sentencepiece"  # our key of tokenizer_config.json: read the model by sentencepiece's rules


class SentencePieceTokenizer:
    """A SentencePiece .model file, through the `sentencepiece` library.

    As with transformers' LlamaTokenizer, texts begin with the begin token, unless add_bos is False.
    """

    def __init__(
        self, path: str | Path, add_bos: bool = True, *, beside: Mapping[str, bytes] = {}, ends: Sequence[int] = ()
    ):
        try:
            import sentencepiece
        except ImportError as e:
            raise ConfigError(f"{path}: reading a SentencePiece model needs `pip install sentencepiece`.") from e
        self._bytes = Path(path).read_bytes()
        self._sp = sentencepiece.SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(self._bytes)
        except Exception as e:
            raise ConfigError(f"{path}: not a SentencePiece model, or a truncated one ({e}).") from e
        self.vocab_size = self._sp.GetPieceSize()
        self.bos_id = self._sp.bos_id() if self._sp.bos_id() >= 0 else None
        self.eos_id = self._sp.eos_id() if self._sp.eos_id() >= 0 else None
        self.prefix = (self.bos_id,) if add_bos and self.bos_id is not None else ()
        self.end_ids: tuple[int, ...] = one_each(self.eos_id, ends)
        self._beside = with_ends(beside, self.end_ids)

    @property
    def fingerprint(self) -> str:
        """sha256 of the model file."""
        return hashlib.sha256(self._bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without begin and end tokens."""
        return self._sp.Encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, by the library's own threads, one for each core."""
        return self._sp.Encode(list(texts), num_threads=-1)

    @property
    def specials(self) -> set[str]:
        """The pieces that do not stand for text: begin, end, unknown and other control pieces."""
        ids = range(self.vocab_size)
        return {self._sp.IdToPiece(i) for i in ids if self._sp.IsControl(i) or self._sp.IsUnknown(i)}

    def decode(self, ids: Any) -> str:
        """Returns the text of ids, without control pieces; ids outside the vocabulary are left out."""
        return self._sp.Decode([i for i in map(int, ids) if 0 <= i < self.vocab_size])

    def files(self) -> dict[str, bytes]:
        """Returns tokenizer.model, a tokenizer_config.json and the files that were passed as `beside`."""
        config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": True, SENTENCEPIECE: True}
        config["add_bos_token"] = bool(self.prefix)
        for name, i in (("unk_token", self._sp.unk_id()), ("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            if i is not None and i >= 0:
                config[name] = self._sp.IdToPiece(i)
        config_json = json.dumps(config, indent=2).encode()
        return {"tokenizer.model": self._bytes, "tokenizer_config.json": config_json, **self._beside}
