"""giraffe-jax's side of the bench."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax import hf, inference
from giraffe_jax.attention import attend_rows, choose, place_of_rows
from giraffe_jax.attention.engine import described
from giraffe_jax.bench.jobs import DECODED, DOCUMENT, Job, banded
from giraffe_jax.inference import generation
from giraffe_jax.loading import override
from giraffe_jax.model import Llama, init_params, logits
from giraffe_jax.training.optim import OptimConfig
from giraffe_jax.training.step import TrainState, make_update, train_step


def prepare(settings: dict[str, Any]) -> tuple[Callable[[], Callable[[], Any]], dict[str, Any]]:
    """Loads or draws the weights; returns (a function that compiles the job and returns the function to time; facts for
    the row)."""
    kind, rows, length, dtype = (settings[key] for key in ("kind", "rows", "length", "dtype"))
    what = Job(kind, length, rows, settings["method"], settings["kernel"])
    config = hf.read_config(settings["path"])
    if kind.startswith(("attention", "bands")):
        return _attention(override(config, dict(dtype=dtype)), what)
    weights, remat = settings["param_dtype"], settings["remat"]
    model = override(config, dict(attention=what.kernel, dtype=dtype, param_dtype=weights, remat=remat))
    if settings["random"]:
        params = init_params(override(config, dict(param_dtype=weights)), jax.random.key(0))
    else:
        params = jax.tree.map(lambda x: jnp.asarray(x, weights), hf.load(settings["path"]).params)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (rows, length), np.int32)
    jobs = dict(forward=_forward, nll=_nll, train=_train, packed=_packed, prefill=_prefill, decode=_decode)
    notes = [f"all in {dtype}" if weights == dtype else f"weights {weights}, computed in {dtype}"]
    notes += [] if kind == "decode" else [f"attention {described(model, batch=rows, tokens=length)}"]
    notes += [f"remat {remat}"] if remat != "none" else []
    facts = dict(params=sum(x.size for x in jax.tree.leaves(params)), note="; ".join(notes))
    return lambda: jobs[kind](model, params, tokens), facts


def _forward(model, params, tokens):
    encoding = model.bind(float(tokens.shape[1])).at(_places(tokens))

    def forward(params, tokens, encoding):
        hidden, _ = Llama(model).apply({"params": params}, tokens, encoding)  # type: ignore[misc]
        return logits(params, hidden[:, -1:])

    with model.at_precision():
        compiled = jax.jit(forward).lower(params, tokens, encoding).compile()
    return lambda: jax.block_until_ready(compiled(params, tokens, encoding))


def _nll(model, params, tokens):
    lm, encoding = inference.LM(model, params, None), model.bind(float(tokens.shape[1]))  # type: ignore[arg-type]
    jax.block_until_ready(inference.score(lm, tokens, encoding))  # compiles
    return lambda: jax.block_until_ready(inference.score(lm, tokens, encoding))


def _places(tokens, document: int | None = None) -> np.ndarray:
    row = np.arange(tokens.shape[1], dtype=np.float32)
    return np.broadcast_to(row if document is None else row % document, tokens.shape)


def _packed(model, params, tokens):
    return _train(model, params, tokens, DOCUMENT)


def _train(model, params, tokens, document: int | None = None):
    update = make_update(OptimConfig(lr=1e-6), 100)
    moments = update.chain().init(params)
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
    compiled = train_step.lower(state, batch, model.bind(), update, model=model).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, batch, model.bind(), update)
        jax.block_until_ready(metrics)

    return step


def _prefill(model, params, tokens):
    lm, (rows, length) = inference.LM(model, params, None), tokens.shape  # type: ignore[arg-type]
    encoding = model.bind(float(length)).at(_places(tokens))
    inputs = (lm, tokens, np.full(rows, length), encoding)
    jax.block_until_ready(inference.prefill(*inputs, capacity=length + DECODED))  # compiles
    return lambda: jax.block_until_ready(inference.prefill(*inputs, capacity=length + DECODED))


def _decode(model, params, tokens):
    lm, (rows, length) = inference.LM(model, params, None), tokens.shape  # type: ignore[arg-type]
    encoding = model.bind(float(length + DECODED)).at(_places(tokens))
    first, cache = inference.prefill(lm, tokens, np.full(rows, length), encoding, capacity=length + DECODED)
    light = encoding.replace(positions=None)
    settings = dict(policy="pinned", sample=False, room=DECODED)
    never, alive = np.array([-1], np.int32), np.ones(rows, bool)
    inputs = (first, cache, light, DECODED, never, np.float32(0), jax.random.key(0), alive)
    compiled = generation.loop.lower(model, params, *inputs, **settings).compile()
    return lambda: jax.block_until_ready(compiled(params, *inputs))


def _attention(model, job: Job):
    dtype = model.dtype
    bands, bias = banded(model, job)
    shape, count = (job.rows, job.length), max(1, len(bands))
    options: dict[str, Any] = dict(bands=bands, bias=bias)
    heads = (model.num_heads, model.num_kv_heads, model.head_dim)
    kernel = choose(job.kernel, tokens=job.length, batch=job.rows, heads=heads, dtype=dtype, **options)
    keys = jax.random.split(jax.random.key(0), 2 * count + 2)

    def draw(key, heads):
        return jax.random.normal(key, (*shape, heads, model.head_dim), dtype)

    q = tuple(draw(key, model.num_heads) for key in keys[:count])
    k = tuple(draw(key, model.num_kv_heads) for key in keys[count:-2])
    v, d = draw(keys[-2], model.num_kv_heads), draw(keys[-1], model.num_heads)

    def forward(q, k, v, options):
        return attend_rows(q, k, v, place=place_of_rows(None, shape), implementation=job.kernel, **options)

    def both(q, k, v, options, d):
        out, back = jax.vjp(lambda q, k, v: forward(q, k, v, options), q, k, v)
        return out, back(d)

    function: Any = both if job.kind.endswith("grad") else forward
    inputs = (q, k, v, options, d) if function is both else (q, k, v, options)

    def compile():
        with model.at_precision():
            compiled = jax.jit(function).lower(*inputs).compile()
        return lambda: jax.block_until_ready(compiled(*inputs))

    return compile, dict(note=f"attention {kernel.name}, {count} band{'s' * (count > 1)}" + _passed(kernel))


def _passed(kernel) -> str:
    return f" ({'; '.join(kernel.passed)})" if kernel.passed else ""


def peak_bytes() -> int | None:
    """Returns the device's peak memory in bytes; None on a CPU, where the worker measures the process."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None
