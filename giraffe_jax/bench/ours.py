"""Our side of the bench."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax import decode, hf
from giraffe_jax.attention import attend
from giraffe_jax.bench import DECODED
from giraffe_jax.loading import override
from giraffe_jax.model import Llama, logits
from giraffe_jax.optim import OptimConfig, optimizer
from giraffe_jax.step import TrainState, train_step


def prepare(settings: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Loads the weights and returns the function that compiles the job, which returns the function to time."""
    kind, length, dtype = settings["kind"], settings["length"], settings["dtype"]
    if kind.startswith("attention"):
        return lambda: _attention(hf.read_config(settings["path"]), length, dtype, grad=kind.endswith("grad"))
    checkpoint = hf.load(settings["path"])
    model = override(checkpoint.config, dict(attention="auto", dtype=dtype, param_dtype=dtype))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), checkpoint.params)
    tokens = _tokens(length, model.vocab_size)
    jobs = dict(forward=_forward, train=_train, decode=_decode)
    return lambda: jobs[kind](model, params, tokens)


def _tokens(length: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (1, length), np.int32)


def _forward(model, params, tokens):
    encoding = model.bind(float(tokens.shape[1])).at(jnp.arange(float(tokens.shape[1]))[None])

    def forward(params, tokens, encoding):
        hidden, _ = Llama(model).apply({"params": params}, tokens, encoding)  # type: ignore[misc]
        return logits(params, hidden[:, -1:])

    compiled = jax.jit(forward).lower(params, tokens, encoding).compile()
    return lambda: jax.block_until_ready(compiled(params, tokens, encoding))


def _train(model, params, tokens):
    optim = OptimConfig(lr=1e-6)
    moments = optimizer(optim, 100).init(params)
    state = TrainState(params, moments, jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)))
    ones = np.ones(tokens.shape, np.float32)
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.float32), tokens.shape)
    batch = dict(
        tokens=tokens, targets=np.roll(tokens, -1), weights=ones, positions=places, segments=np.ones_like(tokens)
    )
    settings = dict(model=model, optim=optim, steps=100)
    compiled = train_step.lower(state, batch, model.bind(), **settings).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, batch, model.bind())
        jax.block_until_ready(metrics)

    return step


def _decode(model, params, tokens):
    lm = decode.LM(model, params, None)
    length = tokens.shape[1]
    encoding = model.bind(float(length + DECODED)).at(jnp.arange(float(length))[None])
    first, cache = decode.prefill(lm, tokens, np.array([length]), encoding, capacity=length + DECODED)
    light = encoding.replace(positions=None)
    settings = dict(policy="pinned", sample=False, room=DECODED)
    inputs = (
        first,
        cache,
        light,
        DECODED,
        np.array([-1], np.int32),
        np.float32(0),
        jax.random.key(0),
        np.array([True]),
    )
    compiled = decode.loop.lower(model, params, *inputs, **settings).compile()
    return lambda: jax.block_until_ready(compiled(params, *inputs))


def _attention(model, length: int, dtype: str, *, grad: bool):
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    q, k, v, d = (
        jax.random.normal(key, (1, length, n, model.head_dim), dtype) for key, n in zip(keys, heads, strict=True)
    )

    def forward(q, k, v):
        return attend((q,), (k,), v, implementation="blockwise")

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
