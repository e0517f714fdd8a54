"""Text to token ids and back: tokenizer.json, SentencePiece models, the vocabulary inside a GGUF file, plain bytes.

`encode` adds no begin or end token. Whether texts start with the begin token is a property of the model's tokenizer,
`prefix`, that training documents, evaluation, generation and exported files all follow.
"""

from giraffe_jax.tokenizer.base import ByteTokenizer, JsonTokenizer, Tokenizer, begun, encode_batch
from giraffe_jax.tokenizer.files import read_json
from giraffe_jax.tokenizer.load import load_tokenizer
from giraffe_jax.tokenizer.pieces import SentencePieceTokenizer

__all__ = [
    "ByteTokenizer", "JsonTokenizer", "SentencePieceTokenizer", "Tokenizer", "begun", "encode_batch", "load_tokenizer",
    "read_json",
]  # fmt: skip
