"""Run every method's example through a two-layer Llama with random weights and original_len 32, on 48 tokens, and print
the largest differences: between the logits of token-by-token decoding and of one forward pass, and between blockwise
and dense attention, for hidden states and for the gradients of all parameters and frequencies.
"""

import argparse
import importlib
from typing import Any

TOKENS, PROMPT = 48, 16
MODEL: dict[str, Any] = dict(head_dim=8, theta=1e4, original_len=32)
LLAMA: dict[str, Any] = MODEL | dict(
    vocab_size=32, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, block_size=16
)
# Tolerances. Float32 rounding gives up to 2e-5 here; one key masked wrongly, in two rows of 48, 4e-2.
DECODING, BLOCKWISE = 1e-4, 1e-4


def run(args: argparse.Namespace) -> int:
    """Prints one line per method; returns 0 if all differences are within tolerance, else 1."""
    from giraffe_jax.positions import lookup, names

    chosen = args.names or names()
    for name in chosen:
        lookup(name, "check methods")
    width = max(map(len, chosen))
    print(f"{'':<{width}}  decoding  blockwise  its gradient")
    program, rows = make_program(), []
    for name in chosen:
        rows.append(differences(name, program))
        print(f"{name:<{width}}  {rows[-1][0]:8.1e}  {rows[-1][1]:9.1e}  {rows[-1][2]:12.1e}", flush=True)
    decoding, blockwise, gradient = (max(column) for column in zip(*rows, strict=True))
    print(f"\nlargest of {len(rows)} methods: decoding {decoding:.1e}, allowed {DECODING:.0e}; blockwise "
          f"{blockwise:.1e} and its gradient {gradient:.1e}, allowed {BLOCKWISE:.0e}")  # fmt: skip
    return 0 if decoding <= DECODING and max(blockwise, gradient) <= BLOCKWISE else 1


def make_program() -> Any:
    """Returns program(params, encoding, tokens, attention) -> (hidden states, gradients of parameters and frequencies).

    Methods that differ only in the values of arrays share one compilation.
    """
    import jax
    import jax.numpy as jnp

    from giraffe_jax.model import Llama, ModelConfig

    def loss(params, inv_freq, e, tokens, attention):
        model = Llama(ModelConfig(attention=attention, **LLAMA))
        hidden, _ = model.apply({"params": params}, tokens, e.replace(inv_freq=inv_freq))
        weights = jnp.cos(jnp.arange(float(hidden.size))).reshape(hidden.shape)
        return jnp.sum(weights * hidden), hidden

    def program(params, e, tokens, attention):
        with ModelConfig(**LLAMA).at_precision():
            gradient_of = jax.value_and_grad(loss, (0, 1), has_aux=True)
            (_, hidden), gradient = gradient_of(params, e.inv_freq, e, tokens, attention)
        return hidden, gradient

    return jax.jit(program, static_argnums=3)


def differences(name: str, program: Any) -> tuple[float, float, float]:
    """Returns the largest differences of a method's example: of logits between decoding and one forward pass, of hidden
    states between blockwise and dense attention, and of their gradients (relative to each array's largest value, or to
    1 if that is larger)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from giraffe_jax.inference import LM
    from giraffe_jax.model import Llama, ModelConfig
    from giraffe_jax.positions import bind

    example = importlib.import_module(f"giraffe_jax.positions.methods.{name}").EXAMPLE
    e = bind([dict(name=name, **example)], length=TOKENS, num_layers=LLAMA["num_layers"], **MODEL)
    tokens = jax.random.randint(jax.random.key(7), (1, TOKENS), 0, LLAMA["vocab_size"])
    where, config = jnp.arange(float(TOKENS))[None], ModelConfig(attention="dense", **LLAMA)
    params = jax.jit(Llama(config).init)(jax.random.key(0), tokens[:, :2], e.at(where[:, :2]))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # Noise: some parameters start at zero, and with small weights attention would be nearly uniform.
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])

    training = e.at(where, key=jax.random.key(2))  # a key switches on random positions and S2 attention
    dense, blockwise = (program(params, training, tokens, attention) for attention in ("dense", "blockwise"))
    sides = zip(jax.tree.leaves(dense[1]), jax.tree.leaves(blockwise[1]), strict=True)
    gradient = max(float(np.abs(a - b).max()) / max(1.0, float(np.abs(a).max())) for a, b in sides)
    hidden, _ = program(params, e.at(where), tokens, "dense")
    return (
        _decoding(LM(config, params, None), e, tokens, hidden),
        float(np.abs(dense[0] - blockwise[0]).max()),
        gradient,
    )


def _decoding(lm: Any, e: Any, tokens: Any, hidden: Any) -> float:
    import numpy as np

    from giraffe_jax.inference import decode_step, prefill
    from giraffe_jax.model import logits
    from giraffe_jax.positions import needs_raw_keys

    with lm.config.at_precision():
        want = np.asarray(logits(lm.params, hidden))[0, PROMPT - 1 :]
    first, cache = prefill(lm, tokens[:, :PROMPT], np.array([PROMPT]), e, capacity=TOKENS, raw=needs_raw_keys(e))
    decoded = [first[0]]
    for t in range(PROMPT, TOKENS):
        logits_BV, cache = decode_step(lm, tokens[:, t], e, cache)
        decoded.append(logits_BV[0])
    return float(np.abs(np.stack(decoded) - want).max())
