"""The work of attention's TPU kernels, which the compiler cannot count: the blocks that they visit are data."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from giraffe_jax.attention import tpu
from giraffe_jax.attention.intervals import intervals, padded, runs_of_keys
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan.work import row_of
from giraffe_jax.training.config import TrainConfig

MATMULS = {"attention": 2, "attention_backward": 5}  # of a block of queries with one of keys, by kernel


def kernel_flops(
    config: TrainConfig, model: ModelConfig, mesh: Mapping[str, int], document: int | None = None
) -> dict[str, float]:
    """Returns the FLOPs of one call of each kernel on one device, the mean of the layers.

    Two for a multiply-add, of every pair of tokens in the blocks that are visited, masked or not, in each band. Devices
    that share a row have equal parts of these: each calls a kernel once for its queries, in a ring for each device's keys.

    Args:
      mesh: axes and their sizes.
      document: tokens of each document of a row; None is one document a row.
    """
    tokens = config.data.seq_len
    place, layers = row_of(model, tokens, document)
    rows = config.data.batch_size // config.accumulate / (mesh["data"] * mesh["fsdp"])
    heads = model.num_heads / mesh["tensor"]
    context = mesh["context"]
    calls = context if model.context == "ring" else 1
    tiles = tpu.tiles(model.dtype, model.head_dim, tokens if context == 1 else tokens // (2 * context))
    found = {}
    for name, tile in zip(MATMULS, tiles, strict=True):
        pairs = []
        for bands in layers:
            runs = runs_of_keys(padded(intervals(place, bands), tile.q), tile.q, tile.k)
            pairs.append(float(jnp.sum(runs.stop - runs.start)) * tile.q * tile.k)
        found[name] = 2 * MATMULS[name] * model.head_dim * rows * heads * float(np.mean(pairs)) / (context * calls)
    return found
