"""Text to token ids and back: tokenizer.json, SentencePiece models, the vocabulary inside a GGUF file, plain bytes.

`encode` adds no begin or end token by itself. What every text begins with is `prefix`, one rule that is kept with the
model: training documents, evaluation, generation and exported files all follow it.
"""

from giraffe_jax.tokenizer.base import ByteTokenizer, JsonTokenizer, Tokenizer, begun, encode_batch
from giraffe_jax.tokenizer.files import read_json
from giraffe_jax.tokenizer.load import load_tokenizer
from giraffe_jax.tokenizer.pieces import SentencePieceTokenizer

__all__ = [
    "ByteTokenizer", "JsonTokenizer", "SentencePieceTokenizer", "Tokenizer", "begun", "encode_batch", "load_tokenizer",
    "read_json",
]  # fmt: skip
