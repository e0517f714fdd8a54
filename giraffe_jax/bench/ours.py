"""Our side of the bench."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax import decode, hf
from giraffe_jax.attention import attend, place_of_rows
from giraffe_jax.bench import DECODED, DOCUMENT
from giraffe_jax.loading import override
from giraffe_jax.model import Llama, logits
from giraffe_jax.optim import OptimConfig, optimizer
from giraffe_jax.step import TrainState, train_step


def prepare(settings: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Loads the weights and returns the function that compiles the job, which returns the function to time."""
    kind, length, dtype = settings["kind"], settings["length"], settings["dtype"]
    if kind.startswith("attention"):
        rows = settings["rows"]
        return lambda: _attention(hf.read_config(settings["path"]), rows, length, dtype, grad=kind.endswith("grad"))
    checkpoint = hf.load(settings["path"])
    model = override(checkpoint.config, dict(attention="auto", dtype=dtype, param_dtype=dtype))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), checkpoint.params)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (settings["rows"], length), np.int32)
    jobs = dict(forward=_forward, nll=_nll, train=_train, packed=_packed, prefill=_prefill, decode=_decode)
    return lambda: jobs[kind](model, params, tokens)


def _forward(model, params, tokens):
    encoding = model.bind(float(tokens.shape[1])).at(_places(tokens))

    def forward(params, tokens, encoding):
        hidden, _ = Llama(model).apply({"params": params}, tokens, encoding)  # type: ignore[misc]
        return logits(params, hidden[:, -1:])

    with model.at_precision():
        compiled = jax.jit(forward).lower(params, tokens, encoding).compile()
    return lambda: jax.block_until_ready(compiled(params, tokens, encoding))


def _nll(model, params, tokens):
    lm, encoding = decode.LM(model, params, None), model.bind(float(tokens.shape[1]))  # type: ignore[arg-type]
    jax.block_until_ready(decode.score(lm, tokens, encoding))  # compiles
    return lambda: jax.block_until_ready(decode.score(lm, tokens, encoding))


def _places(tokens, document: int | None = None) -> np.ndarray:
    row = np.arange(tokens.shape[1], dtype=np.float32)
    return np.broadcast_to(row if document is None else row % document, tokens.shape)


def _packed(model, params, tokens):
    return _train(model, params, tokens, DOCUMENT)


def _train(model, params, tokens, document: int | None = None):
    optim = OptimConfig(lr=1e-6)
    moments = optimizer(optim, 100).init(params)
    state = TrainState(params, moments, jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)))
    ones = np.ones(tokens.shape, np.float32)
    segments = np.broadcast_to(
        np.arange(tokens.shape[1], dtype=np.int32) // (document or tokens.shape[1]) + 1, tokens.shape
    )
    batch = dict(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        weights=ones,
        positions=_places(tokens, document),
        segments=segments,
    )
    settings = dict(model=model, optim=optim, steps=100)
    compiled = train_step.lower(state, batch, model.bind(), **settings).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, batch, model.bind())
        jax.block_until_ready(metrics)

    return step


def _prefill(model, params, tokens):
    lm, (rows, length) = decode.LM(model, params, None), tokens.shape  # type: ignore[arg-type]
    encoding = model.bind(float(length)).at(_places(tokens))
    inputs = (lm, tokens, np.full(rows, length), encoding)
    jax.block_until_ready(decode.prefill(*inputs, capacity=length + DECODED))  # compiles
    return lambda: jax.block_until_ready(decode.prefill(*inputs, capacity=length + DECODED))


def _decode(model, params, tokens):
    lm, (rows, length) = decode.LM(model, params, None), tokens.shape  # type: ignore[arg-type]
    encoding = model.bind(float(length + DECODED)).at(_places(tokens))
    first, cache = decode.prefill(lm, tokens, np.full(rows, length), encoding, capacity=length + DECODED)
    light = encoding.replace(positions=None)
    settings = dict(policy="pinned", sample=False, room=DECODED)
    never, alive = np.array([-1], np.int32), np.ones(rows, bool)
    inputs = (first, cache, light, DECODED, never, np.float32(0), jax.random.key(0), alive)
    compiled = decode.loop.lower(model, params, *inputs, **settings).compile()
    return lambda: jax.block_until_ready(compiled(params, *inputs))


def _attention(model, rows: int, length: int, dtype: str, *, grad: bool):
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    q, k, v, d = (
        jax.random.normal(key, (rows, length, n, model.head_dim), dtype) for key, n in zip(keys, heads, strict=True)
    )

    place = place_of_rows(None, (rows, length))

    def forward(q, k, v):
        return attend((q,), (k,), v, q_place=place, k_place=place, implementation="blockwise")[0]

    def both(q, k, v, d):
        out, back = jax.vjp(forward, q, k, v)
        return out, back(d)

    if grad:
        compiled = jax.jit(both).lower(q, k, v, d).compile()
        return lambda: jax.block_until_ready(compiled(q, k, v, d))
    compiled = jax.jit(forward).lower(q, k, v).compile()
    return lambda: jax.block_until_ready(compiled(q, k, v))


def peak_bytes() -> int | None:
    """Returns the device's own peak where it keeps one; the CPU's is the process's."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None
