"""The full forward pass, which is the oracle of everything that reads a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.model import Llama, logits
from tests.close import decided


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, encoding):
    hidden, _ = Llama(config).apply({"params": params}, tokens, encoding)
    return logits(params, hidden)[0]


def full_logits(lm, tokens, encoding, length=None, width=48):
    """Returns the logits [T V] after each token of one row."""
    # Zeros on the right, which no token before them can see, keep all forwards at one shape.
    padded = jnp.zeros((1, width), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens, jnp.int32))
    at = encoding.at(jnp.arange(float(width))[None], length=length)
    return np.asarray(_forward(lm.config, lm.params, padded, at))[: len(tokens)]


def greedy(lm, prompt, n, encoding, *, running=False, ulps=256):
    """Returns up to n tokens by repeated full forwards, at least one, ending before the first near tie.

    `running`: methods read the length so far instead of the encoding's own.
    """
    tokens = list(prompt)
    for _ in range(n):
        scores = full_logits(lm, tokens, encoding, length=len(tokens) if running else None)[-1]
        if not decided(scores, ulps):
            break
        tokens.append(int(scores.argmax()))
    assert len(tokens) > len(prompt), "a near tie at the first token: choose another prompt"
    return tokens[len(prompt) :]
