"""The work of a training step by its formula: the model's own FLOPs, and the blocks that attention's loops visit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.attention import place_of_rows
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.attention.places import Place
from giraffe_jax.attention.walk import make_walk
from giraffe_jax.model import ModelConfig, lora
from giraffe_jax.positions import Band
from giraffe_jax.positions.layers import limits_differ, of_layer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.step import trainable

Bands = tuple[Band, ...]


def model_flops(config: TrainConfig, model: ModelConfig, params: Any, document: int | None = None) -> float:
    """Returns the FLOPs of a step that no implementation can do without, of all devices together.

    2 N a token forward, as many for the gradients of activations, and 2 for each parameter that is trained (so 6 N in
    all where all are); and 12 * layers * heads * head width for each pair of tokens that attention lets see each other.

    Args:
      params: arrays or shapes; N is all of them.
      document: tokens of each document of a row; None is one document a row, of which a causal query sees half.
    """
    moving, _ = lora.split(params, trainable(params, config.lora, config.frequencies))
    every, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, moving))
    tokens = config.data.batch_size * config.data.seq_len
    pairs = config.data.batch_size * seen_pairs(model, config.data.seq_len, document)
    attention = 12 * model.num_layers * model.num_heads * model.head_dim * pairs
    return (4 * every + 2 * trained) * tokens + attention


def seen_pairs(model: ModelConfig, tokens: int, document: int | None = None) -> float:
    """Returns how many pairs of query and key a row's attention has to compute, the mean of the layers."""
    place, layers = _row(model, tokens, document)

    def pairs(bands: Bands) -> np.float64:
        low, high = (np.asarray(end, np.float64) for end in intervals(place, bands))
        return (high - low).sum()

    return float(np.mean([pairs(bands) for bands in layers]))


def data_trips(model: ModelConfig, tokens: int, document: int | None = None) -> float:
    """Returns the mean trips of blockwise attention's loops over blocks of keys, of which each block of queries runs
    two in each band: one over the blocks that it sees whole and one over the others."""
    place, layers = _row(model, tokens, document)
    group = model.num_heads // model.num_kv_heads

    @jax.jit
    def visits(place, bands):
        count = max(1, len(bands))
        q, k = jnp.zeros((1, tokens, group, 1)), jnp.zeros((1, tokens, 1, 1))
        start, stop, *_ = make_walk(model.block_size, (q,) * count, (k,) * count, k, None, (place, place), bands).visits
        return stop - start  # [bands 1 M]

    return float(np.mean([np.asarray(visits(place, bands)) for bands in layers])) / 2


def _row(model: ModelConfig, tokens: int, document: int | None) -> tuple[Place, list[Bands]]:
    """Returns the place of a row's tokens, and the bands of each layer, or of one where layers do not differ."""
    bands = model.bind(tokens).at(jnp.arange(tokens, dtype=jnp.float32)[None], key=jax.random.key(0)).bands
    segments = None if document is None else jnp.arange(tokens, dtype=jnp.int32)[None] // document + 1
    layers = range(model.num_layers if limits_differ(bands) else 1)
    return place_of_rows(segments, (1, tokens)), [of_layer(bands, i, model.num_layers) for i in layers]
