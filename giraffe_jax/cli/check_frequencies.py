"""Compare frequencies and gains with those of transformers' own initialisers (extra `oracle`) for head_dim 64 and 128,
theta 1e4, 5e5 and 1e6, pretraining lengths 2k to 131k and factors 2 to 32. Prints the largest relative differences from
transformers as it is, in float32, and from the same code run in float64.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

from giraffe_jax.config import ConfigError

HEAD_DIMS, THETAS, FACTORS = (64, 128), (1e4, 5e5, 1e6), (2.0, 4.0, 8.0, 16.0, 32.0)
LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
ALLOWED = 1e-6
# transformers' yarn computes 1 - ramp in float32; near the end of the ramp `factor` multiplies its error: 32 * 2^-24.
ALLOWED_OF_FLOAT32 = {"yarn": 3e-6}


def run(args: argparse.Namespace) -> int:
    """Prints one line per kind of scaling; returns 0 if all are within tolerance, else 1.

    Raises:
      ConfigError: torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(f"check frequencies: {error}; `pip install 'giraffe-jax[oracle]'` has it.") from error
    transformers.logging.set_verbosity_error()  # it would warn about every configuration that extends nothing
    print(f"{'':<14}{'float32':>8}  {'float64':>8}  of configurations")
    right = True
    for kind in KINDS:
        (rounded, count), (exact, _) = largest_difference(kind, False), largest_difference(kind, True)
        right &= rounded <= ALLOWED_OF_FLOAT32.get(kind, ALLOWED) and exact <= ALLOWED
        print(f"{kind:<14}{rounded:>8.1e}  {exact:>8.1e}  {count}", flush=True)
    yarn = f"{ALLOWED_OF_FLOAT32['yarn']:.0e} for yarn in float32 (transformers' own rounding error)"
    print(f"\nallowed: {ALLOWED:.0e}; {yarn}")
    return 0 if right else 1


def largest_difference(kind: str, exact: bool) -> tuple[float, int]:
    """Returns the largest relative difference of any frequency or gain, and the number of configurations compared.

    Args:
      kind: a `rope_type` of transformers.
      exact: run transformers' code in float64.
    """
    import numpy as np

    from giraffe_jax.positions import frequencies

    largest, count = 0.0, 0
    for head_dim, theta, length in itertools.product(HEAD_DIMS, THETAS, LENGTHS):
        for scaling, parameters, seq_len in _cases(kind, head_dim, length):
            want, gain = _theirs(kind, head_dim, theta, length, seq_len, parameters, exact)
            got, our_gain = frequencies(scaling, head_dim=head_dim, theta=theta, original_len=length, length=seq_len)
            turning, count = want > 0, count + 1
            if got[~turning].any():
                return float("inf"), count
            largest = max(largest, float(np.abs(got[turning] / want[turning] - 1).max()), abs(our_gain / gain - 1))
    return largest, count


def _cases(kind: str, head_dim: int, length: int) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any], int]]:
    """Yields (our methods, transformers' rope parameters, sequence length) for every factor."""
    import numpy as np

    if kind == "default":
        yield [], {}, length
        return
    for factor in FACTORS:
        original = dict(original_max_position_embeddings=length)
        if kind == "linear":
            yield [dict(name="linear", factor=factor)], dict(factor=factor), length
        elif kind == "dynamic":
            for seq_len in (length // 2, 2 * length, int(factor * length)):
                yield [dict(name="dynamic", factor=factor)], dict(factor=factor), seq_len
        elif kind == "yarn":
            for truncate in (True, False):
                settings = dict(factor=factor, truncate=truncate)
                yield [dict(name="yarn", **settings)], settings | original, length
        elif kind == "longrope":
            short = np.linspace(1.0, 1.1, head_dim // 2).tolist()
            long = np.geomspace(1.0, 1.2 * factor, head_dim // 2).tolist()
            lists = dict(short_factor=short, long_factor=long, factor=factor)
            for seq_len in (length, 2 * length):
                yield [dict(name="longrope", **lists)], lists | original, seq_len
        elif kind == "llama3":
            bands = dict(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
            yield [dict(name="llama3", **bands)], bands | original, length
        else:
            for fraction in (0.25, 0.5):
                parameters = dict(factor=factor, partial_rotary_factor=fraction)
                yield [dict(name="proportional", fraction=fraction, factor=factor)], parameters, length


def _theirs(kind: str, head_dim: int, theta: float, length: int, seq_len: int, parameters: dict, exact: bool) -> Any:
    import numpy as np
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = dict(rope_type=kind, rope_theta=theta, **parameters)
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=length,
        rope_parameters=rope,
    )  # fmt: skip
    function = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    with contextlib.ExitStack() as stack:
        if exact:
            for name in ("float", "float32"):
                stack.enter_context(mock.patch.object(torch, name, torch.float64))
        inv_freq, gain = function(config, device=torch.device("cpu"), seq_len=seq_len)
    return inv_freq.numpy().astype(np.float64), float(gain)
