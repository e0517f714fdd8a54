"""Run the attention of every method's example with the kernel that `model.attention="auto"` chooses on this machine.

Prints which kernel that is, why faster ones were not used, and how far its output and gradients are from dense
attention in float32 (relative L2 norms), for rows of one document and of three packed documents.
"""

import argparse
import importlib
from typing import Any

BATCH, HEADS = 2, (4, 2, 64)  # rows; query heads, key heads, head_dim
ALLOWED = {"bfloat16": (5e-3, 1e-2), "float32": (1e-5, 1e-5)}  # tolerances of output and gradients


def run(args: argparse.Namespace) -> int:
    """Prints one line per method and number of documents; returns 0 if all are within tolerance, else 1."""
    from giraffe_jax.positions import lookup, names

    chosen = args.names or names()
    for name in chosen:
        lookup(name, "check kernels")
    width, worst = max(map(len, chosen)), [0.0, 0.0]
    print(f"{'':<{width}}  {'documents':>9}  {'output':>7}  {'gradients':>9}  kernel")
    program = make_program()
    for name in chosen:
        for documents in (1, 3):
            kernel, *errors = differences(name, args.tokens, args.dtype, documents, program)
            worst = [max(pair) for pair in zip(worst, errors, strict=True)]
            print(f"{name:<{width}}  {documents:>9}  {errors[0]:7.1e}  {errors[1]:9.1e}  {kernel}", flush=True)
    allowed = ALLOWED[args.dtype]
    print(f"\nlargest of {len(chosen)} methods: output {worst[0]:.1e}, allowed {allowed[0]:.0e}; gradients "
          f"{worst[1]:.1e}, allowed {allowed[1]:.0e}")  # fmt: skip
    return 0 if all(w <= a for w, a in zip(worst, allowed, strict=True)) else 1


def make_program() -> Any:
    """Returns program(q, k, v, d_out, place, bands, bias, implementation) -> (output, gradients).

    Methods that differ only in the values of arrays share one compilation.
    """
    import jax

    from giraffe_jax.attention import attend_rows

    def program(q, k, v, d_out, place, bands, bias, implementation):
        def attention(q, k, v):
            return attend_rows(q, k, v, place=place, bands=bands, bias=bias, implementation=implementation)

        with jax.default_matmul_precision("highest"):
            out, pull = jax.vjp(attention, q, k, v)
            return out, pull(d_out)

    return jax.jit(program, static_argnums=7)


def differences(name: str, tokens: int, dtype: str, documents: int, program: Any) -> tuple[str, float, float]:
    """Returns, for a method's example: the kernel and why it was chosen; the error of its output; the largest error of
    its gradients. Errors are relative L2 norms of the difference from dense attention in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from giraffe_jax import positions
    from giraffe_jax.attention import choose, place_of_rows
    from giraffe_jax.positions.layers import of_layer

    example = _wider(importlib.import_module(f"giraffe_jax.positions.methods.{name}").EXAMPLE)
    size = -(-tokens // documents)
    segments = np.broadcast_to(np.arange(tokens) // size + 1, (BATCH, tokens)).astype(np.int32)
    num_heads, num_kv_heads, head_dim = HEADS
    shape: dict[str, Any] = dict(head_dim=head_dim, theta=1e4, original_len=max(tokens // 2, 2), num_layers=1)
    e = positions.bind([dict(name=name, **example)], **shape)
    e = e.at(np.arange(tokens)[None] % size * jnp.ones((BATCH, 1)), key=jax.random.key(2))
    e = positions.with_learned(e, lambda item: item.init(jax.random.key(3), num_heads))
    bias, bands = e.bias, of_layer(e.bands, 0, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (num_heads, num_kv_heads, num_kv_heads, num_heads)
    draws = (jax.random.normal(key, (BATCH, tokens, n, head_dim)) for key, n in zip(keys, heads, strict=True))
    q, k, v, d_out = (x.astype(dtype) for x in draws)
    tables = [jax.tree.map(lambda x: x[0] if x.ndim == 4 else x, t) for t in positions.rotations(e)]
    bands_q = tuple(positions.rotate(q, t.q_cos, t.q_sin) for t in tables)
    bands_k = tuple(positions.rotate(k, t.k_cos, t.k_sin) for t in tables)
    options: dict[str, Any] = dict(bands=bands, bias=bias)
    kernel = choose("auto", tokens=tokens, batch=BATCH, heads=HEADS, dtype=dtype, **options)
    place = place_of_rows(jnp.asarray(segments), (BATCH, tokens))
    inputs = (bands_q, bands_k, v, d_out)
    result = program(*inputs, place, *options.values(), "auto")
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    want = program(*exact, place, *options.values(), "dense")
    out, *gradients = (_apart(*pair) for pair in zip(*map(jax.tree.leaves, (result, want)), strict=True))
    return str(kernel), out, max(gradients)


def _wider(example: Any) -> Any:
    """Returns an example, written for head_dim 8, with its lists of four planes repeated for the head_dim of HEADS."""
    if isinstance(example, dict):
        return {key: _wider(value) for key, value in example.items()}
    if not isinstance(example, list | tuple):
        return example
    if len(example) == 4 and all(isinstance(x, int | float) for x in example):
        return [x for x in example for _ in range(HEADS[2] // 8)]
    return [_wider(value) for value in example]


def _apart(result: Any, want: Any) -> float:
    import numpy as np

    result, want = (np.asarray(x, np.float64) for x in (result, want))
    return float(np.linalg.norm(result - want) / max(np.linalg.norm(want), 1e-30))
