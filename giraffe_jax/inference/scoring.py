"""Scoring: the loss of every token of a batch of rows, in one forward pass."""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from giraffe_jax.model import Llama, ModelConfig, unembedding
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.positions import Encoding

Tokens = Int[Array | np.ndarray, "B T"]


@runtime_checkable
class Loaded(Protocol):
    """What scoring and generation read of an LM."""

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        ...

    @property
    def params(self) -> Any:
        """The model's parameters."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...


def score(
    lm: Loaded,
    tokens: Tokens,
    encoding: Encoding | None = None,
    segments: Tokens | None = None,
    positions: Float[Array | np.ndarray, "B T"] | None = None,
    scored: Int[Array | np.ndarray, "B M"] | None = None,
) -> tuple[Float[Array, "B T-1"], Bool[Array, "B T-1"]]:
    """Returns (nll in nats, whether it is the most likely token) of every token but the first of each row.

    Args:
      lm: the model.
      tokens: input ids; rows may be padded on the right.
      encoding: without positions; by default the config's own. Its sequence length is the one it is bound with, else T.
      segments: document id of each token, 0 for padding; by default each row is one document.
      positions: tokens since the document's start; by default the index in the row.
      scored: indices, 1 to T-1, of the tokens that are needed; only for these are logits computed. The others' nll is
        NaN, and they count as not likeliest. By default all.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    if positions is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.float32), tokens.shape)
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments, jnp.int32)
    encoding = lm.config.bind() if encoding is None else encoding
    scored = None if scored is None else jnp.asarray(scored, jnp.int32)
    return _score(_program(lm.config), lm.params, tokens, encoding.at(positions), segments, scored)


# Compiled functions. Their static `config` has no position methods, which are in the encoding: else each method would
# need its own compilation.


def _program(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, positions=(), remat="none")


def _forward(config: ModelConfig, params, *inputs) -> tuple[Any, Any]:
    hidden, cache = Llama(config).apply({"params": params}, *inputs)
    return hidden, cache


@functools.partial(jax.jit, static_argnums=0)
def _score(config: ModelConfig, params, tokens, encoding: Encoding, segments, scored=None):
    # All T tokens go in, since blockwise attention divides T; the prediction after the last token is dropped.
    targets = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
    with config.at_precision():
        hidden, _ = _forward(config, params, tokens, encoding, segments, None)
        if scored is None:
            nll, _, correct = token_nll(hidden, unembedding(params), targets)
            return nll[:, :-1], correct[:, :-1]
        before = scored - 1
        hidden = jnp.take_along_axis(hidden, before[..., None], axis=1)
        nll, _, correct = token_nll(hidden, unembedding(params), jnp.take_along_axis(targets, before, axis=1))
    rows, shape = jnp.arange(tokens.shape[0])[:, None], (tokens.shape[0], tokens.shape[1] - 1)
    return jnp.full(shape, jnp.nan).at[rows, before].set(nll), jnp.zeros(shape, bool).at[rows, before].set(correct)
