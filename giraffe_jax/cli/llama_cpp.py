"""Token ids and losses of llama.cpp, by the C interface (llama.h) of its shared library in the wheel of `xllamacpp`.

`compute(FILE, ...)` starts this module as a process of its own, so that a crash of the library ends nothing else. The
structures of llama.h differ between versions; here they are opaque and have room to spare, and only the first three
numbers of a context's (its length, batch and micro-batch) are set. Whether the context got that length is checked.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError

MODULE = "xllamacpp.xllamacpp"
BATCH = 512  # tokens whose logits are held in memory at once


def installed() -> bool:
    """Returns whether `xllamacpp` is installed."""
    return importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec(MODULE) is not None


def check_installed() -> None:
    """Raises ConfigError if `xllamacpp` is not installed, saying how to install it."""
    if not installed():
        raise ConfigError("llama.cpp: `xllamacpp` is not installed; `pip install 'giraffe-jax[oracle]'` has it.")


def compute(
    file: Path, texts: Sequence[str] = (), rows: Sequence[Sequence[int]] = ()
) -> tuple[list[list[int]], list[np.ndarray]]:
    """Returns llama.cpp's token ids of each text, and for each row of T ids the [T-1] losses of all but the first, in
    nats.

    Raises:
      ConfigError: `xllamacpp` is not installed, or llama.cpp ended without an answer.
    """
    check_installed()
    request = json.dumps(dict(texts=list(texts), rows=[[int(token) for token in row] for row in rows]))
    command = [sys.executable, "-m", __name__, str(file)]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise ConfigError(f"{file}: llama.cpp cannot read it: {last}")
    answer = json.loads(done.stdout)
    return answer["ids"], [np.asarray(losses) for losses in answer["losses"]]


class _Opaque(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 256)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def _library() -> Any:
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None and spec.origin
    lib = ctypes.CDLL(spec.origin)
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = _Opaque
    lib.llama_batch_init.restype = _Batch
    lib.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_n_ctx.restype = ctypes.c_uint32
    return lib


def _answer(file: str, texts: list[str], rows: list[list[int]]) -> dict[str, Any]:
    lib = _library()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model = ctypes.c_void_p(lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params()))
    if not model:
        sys.exit("the file cannot be loaded")
    vocab = ctypes.c_void_p(lib.llama_model_get_vocab(model))
    return dict(
        ids=[_tokenize(lib, vocab, text) for text in texts], losses=[_losses(lib, model, vocab, row) for row in rows]
    )


def _tokenize(lib: Any, vocab: Any, text: str) -> list[int]:
    data = text.encode()
    size = len(data) + 8
    ids = (ctypes.c_int32 * size)()
    count = lib.llama_tokenize(vocab, data, len(data), ids, size, ctypes.c_bool(True), ctypes.c_bool(True))
    if count < 0:
        sys.exit(f"a text of {len(data)} bytes cannot be tokenized")
    return list(ids[:count])


def _losses(lib: Any, model: Any, vocab: Any, row: list[int]) -> list[float]:
    params, size = lib.llama_context_default_params(), min(BATCH, len(row))
    params.words[0], params.words[1], params.words[2] = len(row) + 8, size, size
    context = ctypes.c_void_p(lib.llama_init_from_model(model, params))
    if not context or lib.llama_n_ctx(context) < len(row):
        sys.exit(f"no context of {len(row)} tokens can be made")
    threads = ctypes.c_int32(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    lib.llama_set_n_threads(context, threads, threads)
    vocab_size, losses = lib.llama_vocab_n_tokens(vocab), []
    batch = lib.llama_batch_init(size, 0, 1)
    for start in range(0, len(row), size):
        part, targets = row[start : start + size], row[start + 1 : start + size + 1]
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
            batch.seq_id[i][0] = 0
        if status := lib.llama_decode(context, batch):
            sys.exit(f"llama_decode returned {status} at token {start}")
        logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(part), vocab_size))
        for logits_V, target in zip(logits, targets, strict=False):  # the last token of a row has no target
            logits_V = logits_V.astype(np.float64)
            top = logits_V.max()
            losses.append(float(top + np.log(np.exp(logits_V - top).sum()) - logits_V[target]))
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    return losses


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], **json.load(sys.stdin))))
