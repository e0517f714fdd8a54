"""FLOPs of attention's Pallas kernels, which the compiler cannot count: which blocks they visit depends on the data."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.attention import ranges, tpu
from giraffe_jax.attention.intervals import intervals, padded, runs_of_keys, runs_of_queries
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan.work import row_of
from giraffe_jax.training.config import TrainConfig

# Matmuls per block of queries and block of keys, by kernel.
MATMULS_OF_TPU = {"attention": 2, "attention_backward": 5}
MATMULS_OF_GPU = {"attention": 2, "attention_d_q": 3, "attention_d_kv": 4}
CUDNN = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


def known_kernels(
    attention: str,
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mapping[str, int],
    document: int | None = None,
    capability: str | None = None,
) -> dict[str, float]:
    """Returns the FLOPs per call of each kernel on one device, for `hlo.count`.

    If cuDNN handles rows of one document and the Pallas kernels handle other rows, the program contains both, and the
    kernels that do not run get 0.

    Args:
      attention: the implementation of attention, from `engine.described`.
      config, model, mesh, document, capability: as in `kernel_flops`.
    """
    name = attention.split(",")[0]
    if name not in ("pallas", "cudnn"):
        return {}
    flops = kernel_flops(config, model, mesh, document, capability=capability)
    if name == "pallas":
        return flops
    one_document = document is None or document >= config.data.seq_len
    return dict.fromkeys(flops, 0.0) if one_document else flops | dict.fromkeys(CUDNN, 0.0)


def kernel_flops(
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mapping[str, int],
    document: int | None = None,
    *,
    capability: str | None = None,
) -> dict[str, float]:
    """Returns the FLOPs of one call of each kernel on one device, averaged over layers.

    They are two per multiply-add, for every pair of tokens in the visited blocks, masked or not, in each band. Devices
    that share a row do equal parts of them: each calls a kernel once for all its queries, or, in a ring, once per
    device's keys.

    Args:
      config: of the training.
      model: its ModelConfig.
      mesh: axes and their sizes.
      document: tokens of each document of a row; None: one document per row.
      capability: compute capability of a GPU, such as "9.0"; None for a TPU.
    """
    tokens = config.data.seq_len
    place, layers = row_of(model, tokens, document)
    rows = config.data.batch_size // config.accumulate / (mesh["data"] * mesh["fsdp"])
    heads = model.num_heads / mesh["tensor"]
    context = mesh["context"]
    calls = context if model.context == "ring" else 1
    if capability is None:
        width, matmuls_of, extra = model.head_dim, MATMULS_OF_TPU, []
        tiles = tpu.tiles(model.dtype, width, tokens if context == 1 else tokens // (2 * context))
    else:
        bias, width, matmuls_of = _has_bias(model, tokens), ranges.padded_width(model.head_dim), MATMULS_OF_GPU
        tiles = ranges.tiles(model.dtype, model.head_dim, capability=capability, bias=bias)
        # The gradient of a bias has its own kernel, which recomputes logits and their gradients in square blocks.
        extra = [("attention_d_bias", tiles.d_kv.k, tiles.d_kv.k, 2)] if bias else []
    flops = {}
    work = [(name, tile.q, tile.k, count) for (name, count), tile in zip(matmuls_of.items(), tiles, strict=True)]
    for name, q, k, matmuls in [*work, *extra]:
        pairs = []
        for bands in layers:
            ends = padded(intervals(place, bands), q)
            if name == "attention_d_kv":
                runs = runs_of_queries(ends, tokens + -tokens % k, q, k)
            else:
                runs = runs_of_keys(ends, q, k)
            pairs.append(float(jnp.sum(runs.stop - runs.start)) * q * k)
        flops[name] = 2 * matmuls * width * rows * heads * float(np.mean(pairs)) / (context * calls)
    return flops


def _has_bias(model: ModelConfig, tokens: int) -> bool:
    return jax.eval_shape(lambda: model.bind(tokens).at(jnp.zeros((1, 2)), key=jax.random.key(0))).bias is not None
