"""Token ids and losses of llama.cpp itself, through its C interface (llama.h) in the wheel of `xllamacpp`.

A process of its own: `python tests/hf/llama_cpp.py FILE.gguf` reads a JSON list of texts and of lists of ids, and
answers with the ids of each text and the mean nll of each list. Structures are passed as they come, as bytes with room
to spare; of them only the first three numbers of a context's are written.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np


class Opaque(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def library():
    """llama.cpp's functions, with the types that they return."""
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    assert found is not None and found.origin
    lib = ctypes.CDLL(found.origin)
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = Opaque
    lib.llama_batch_init.restype = Batch
    lib.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    return lib


def main(path, asked):
    lib = library()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model = ctypes.c_void_p(lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params()))
    assert model, f"llama.cpp does not load {path}"
    vocab = ctypes.c_void_p(lib.llama_model_get_vocab(model))
    return [tokenize(lib, vocab, x) if isinstance(x, str) else nll(lib, model, vocab, x) for x in asked]


def tokenize(lib, vocab, text):
    data, most = text.encode(), len(text.encode()) + 8
    ids = (ctypes.c_int32 * most)()
    count = lib.llama_tokenize(vocab, data, len(data), ids, most, ctypes.c_bool(True), ctypes.c_bool(True))
    assert count >= 0
    return list(ids[:count])


def nll(lib, model, vocab, ids):
    """The mean nll of ids[1:], and the logits of the last token."""
    params, count = lib.llama_context_default_params(), len(ids)
    params.words[0] = params.words[1] = params.words[2] = count + 8  # context, batch, micro-batch
    context = ctypes.c_void_p(lib.llama_init_from_model(model, params))
    assert context, "no context"
    batch = lib.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert lib.llama_decode(context, batch) == 0
    size = lib.llama_vocab_n_tokens(vocab)
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (count, size)).astype(np.float64)
    lib.llama_free(context)
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(-log_p[np.arange(count - 1), ids[1:]].mean())


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.load(sys.stdin))))
