"""The work of a training step from formulas: the model FLOPs, and the number of blocks that attention's loops visit."""

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


def model_flops(config: TrainConfig, model: ModelConfig, params: Any, document: int | None = None) -> float:
    """Returns the FLOPs of a step that every implementation needs, over all devices.

    Per token 2 N for the forward pass, 2 N for gradients of activations, and 2 for each trained parameter (so 6 N if
    all are trained); plus 12 * layers * heads * head_dim for each pair of query and key that attention allows.

    Args:
      config: of the training.
      model: its ModelConfig.
      params: arrays or shapes; N counts all of them.
      document: tokens of each document of a row; None: one document per row, in which queries see half of the keys.
    """
    moving, _ = lora.split(params, trainable(params, config.lora, config.frequencies))
    every, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, moving))
    tokens = config.data.batch_size * config.data.seq_len
    pairs = config.data.batch_size * seen_pairs(model, config.data.seq_len, document)
    attention = 12 * model.num_layers * model.num_heads * model.head_dim * pairs
    return (4 * every + 2 * trained) * tokens + attention


def seen_pairs(model: ModelConfig, tokens: int, document: int | None = None) -> float:
    """Returns the number of query-key pairs that attention allows in a row, averaged over layers."""
    place, layers = row_of(model, tokens, document)

    def of_layer(bands: tuple[Band, ...]) -> np.float64:
        low, high = (np.asarray(end, np.float64) for end in intervals(place, bands))
        return (high - low).sum()

    return float(np.mean([of_layer(bands) for bands in layers]))


def data_trips(model: ModelConfig, tokens: int, document: int | None = None) -> float:
    """Returns the mean number of iterations of blockwise attention's loops over blocks of keys. Each block of queries
    runs two such loops per band: one over fully visible blocks and one over partly masked ones."""
    place, layers = row_of(model, tokens, document)
    group = model.num_heads // model.num_kv_heads

    @jax.jit
    def visits(place, bands):
        count = max(1, len(bands))
        q, k = jnp.zeros((1, tokens, group, 1)), jnp.zeros((1, tokens, 1, 1))
        start, stop, *_ = make_walk(model.block_size, (q,) * count, (k,) * count, k, None, (place, place), bands).visits
        return stop - start  # [bands 1 M]

    return float(np.mean([np.asarray(visits(place, bands)) for bands in layers])) / 2


def row_of(model: ModelConfig, tokens: int, document: int | None) -> tuple[Place, list[tuple[Band, ...]]]:
    """Returns the Place of a row's tokens, and the bands of each layer, or of one layer if all are equal."""
    bands = model.bind(tokens).at(jnp.arange(tokens)[None]).bands
    segments = None if document is None else jnp.arange(tokens, dtype=jnp.int32)[None] // document + 1
    count = model.num_layers if limits_differ(bands) else 1
    layers = [of_layer(bands, layer, model.num_layers) for layer in range(count)]
    return place_of_rows(segments, (1, tokens)), layers
