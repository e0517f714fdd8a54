"""Memory of a training step against the length of its rows: bytes of temporaries per token, by the compiler's figures.

    python experiments/performance/memory.py --lengths 8192 32768 131072 524288

Compiles, and does not run, the step that `giraffe train` would run for a Llama of small width, one row of each length.
One line of JSON per length; `ratio` is to the first. Linear memory has ratios near 1. Takes minutes on two CPU cores.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp

from giraffe_jax.config import build
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.step import init_state, make_update, train_step

SHAPE = dict(vocab_size=512, d_model=64, d_mlp=176, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16,
             attention="blockwise")  # fmt: skip


def temporaries(length: int, **options) -> tuple[int, float]:
    """Returns (bytes of temporaries of one step on a row of `length` tokens, seconds of compilation)."""
    model = build(ModelConfig, SHAPE | options)
    data = dict(sources=[dict(kind="synthetic")], seq_len=length, batch_size=1)
    config = build(TrainConfig, dict(data=data, steps=1))
    state = jax.eval_shape(lambda: init_state(init_params(model, jax.random.key(0)), config))
    dtypes = dict(tokens=jnp.int32, targets=jnp.int32, weights=jnp.float32, positions=jnp.float32, segments=jnp.int32)
    batch = {name: jax.ShapeDtypeStruct((1, length), dtype) for name, dtype in dtypes.items()}
    began = time.perf_counter()
    lowered = train_step.lower(state, batch, model.bind(), make_update(config.optim, 1), model=model)
    memory = lowered.compile().memory_analysis()
    assert memory is not None  # the CPU's compiler always has the figure
    return memory.temp_size_in_bytes, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072, 524288])
    parser.add_argument("--remat", nargs="+", default=["none", "full", "save_attention", "offload"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--mlp-chunk", type=int, default=0)
    args = parser.parse_args()
    for remat in args.remat:
        first = None
        for length in args.lengths:
            used, seconds = temporaries(length, remat=remat, dtype=args.dtype, mlp_chunk=args.mlp_chunk)
            first = first or used / length
            row = dict(remat=remat, length=length, temp_bytes=used, per_token=round(used / length, 1))
            print(json.dumps(row | dict(ratio=round(used / length / first, 4), seconds=round(seconds, 1))), flush=True)


if __name__ == "__main__":
    main()
