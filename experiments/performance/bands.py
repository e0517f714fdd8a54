"""Blockwise attention with bands against plain: time and memory of one layer's attention at 16,384 tokens.

    python experiments/performance/bands.py --length=16384

In SmolLM2-135M's shape (9 heads, 3 key heads, 64 features), float32, forward. Memory is the compiler's own figure for
temporaries. One line of JSON per method; ratios are to plain RoPE in the same run. Takes minutes on two CPU cores.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp

from giraffe_jax import positions
from giraffe_jax.attention import attend, place_of_rows

METHODS = {
    "plain": [],
    "rerope": [dict(name="rerope", window=512)],
    "self_extend": [dict(name="self_extend", window=1024, group=8)],
    "dca": [dict(name="dca")],
    "lm_infinite": [dict(name="lm_infinite")],
    "streaming": [dict(name="streaming")],
    "sliding_window": [dict(name="sliding_window", window=4096.0)],
    "alibi": [dict(name="alibi")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--original-len", type=int, default=8192)
    parser.add_argument("--block-size", type=int, help="tokens of a block of keys")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, args.length, n, 64)) for key, n in zip(keys, (9, 3, 3), strict=True))
    plain = None
    for name in dict.fromkeys(["plain", *args.methods]):
        e = positions.bind(METHODS[name], head_dim=64, theta=1e5, original_len=args.original_len, length=args.length)
        e = e.at(jnp.arange(float(args.length))[None])

        place = place_of_rows(None, (1, args.length))

        def run(q, k, v, e, place=place):
            tables = positions.rotations(e)
            return attend(
                tuple(positions.rotate(q, t.q_cos, t.q_sin) for t in tables),
                tuple(positions.rotate(k, t.k_cos, t.k_sin) for t in tables),
                v, q_place=place, k_place=place, bands=e.bands, bias=e.bias,
                implementation="blockwise", block_size=args.block_size,
            )[0]  # fmt: skip

        compiled = jax.jit(run).lower(q, k, v, e).compile()
        jax.block_until_ready(compiled(q, k, v, e))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(compiled(q, k, v, e))
            seconds.append(time.perf_counter() - began)
        memory = compiled.memory_analysis()
        assert memory is not None  # the CPU's compiler always has the figure
        row = dict(seconds=min(seconds), temporaries_mb=memory.temp_size_in_bytes / 1e6)
        plain = plain or row
        row |= {f"{key}_ratio": x / plain[key] for key, x in row.items()}
        print(json.dumps(dict(method=name) | {key: round(x, 3) for key, x in row.items()}), flush=True)


if __name__ == "__main__":
    main()
