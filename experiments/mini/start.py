"""Where giraffe-mini starts: random weights, but for one circuit that looks things up, put in by hand.

    python experiments/mini/start.py mini_data mini_start

Copying what followed the same word before takes two heads in series: one that tells each token what came before it, and
one that finds the token that was told the present word (Olsson et al., 2022, arXiv:2209.11895). Small models find that
circuit by themselves only after many millions of tokens; see LOG.md for how many were not enough. Here the first layer
begins as the former and the second as the latter, and training shapes everything from there.

Token embeddings are one vector that all tokens share plus a part of their own within half of the feature space; the
other half starts empty, and carries the previous token.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from config import architecture  # type: ignore[import-not-found]  # noqa: E402

from giraffe_jax import hf  # noqa: E402
from giraffe_jax.config import build  # noqa: E402
from giraffe_jax.model import ModelConfig, init_params  # noqa: E402
from giraffe_jax.tokenizer import load_tokenizer  # noqa: E402

SHARED, OWN = 0.03, 0.03  # root mean squares of the two parts of an embedding
FAST = 4  # planes by which the first layer tells one token from the next
SHARP = 3.0  # how clearly the second layer tells one word from another
QUIET = 0.3  # queries, keys and values that are not part of the circuit
FAINT = 0.005  # what attention and MLPs write that is not: embeddings are small, and would be drowned


def start(config: ModelConfig, seed: int = 0) -> dict:
    """Returns fresh parameters with the circuit in layers 0 and 1."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.array, init_params(config, jax.random.key(seed)))
    D, H, N, K = config.d_model, config.head_dim, config.num_heads, config.num_kv_heads
    R, half = H // 2, K * H
    if D < 2 * half:
        raise ValueError(f"d_model {D} has no room for {half} features of a token and as many of the one before it.")
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0].T
    shared, own, told = basis[0], basis[1 : half + 1], basis[-half:]  # rows; own and told may share one
    embedding = OWN * np.sqrt(D / half) * rng.normal(size=(config.vocab_size, half)) @ own
    params["embed"]["embedding"] = embedding + SHARED * np.sqrt(D) * shared

    attention = params["layers"]["attention"]
    for name in ("q", "k", "v"):
        attention[name]["kernel"] *= QUIET
    attention["o"]["kernel"] *= FAINT
    params["layers"]["mlp"]["down"]["kernel"] *= FAINT
    q, k, v, o = (attention[name]["kernel"] for name in ("q", "k", "v", "o"))
    angle = config.theta ** (-2 * np.arange(FAST) / H)
    for g in range(K):
        mine = slice(g * H, (g + 1) * H)
        # Layer 0: every query asks for the shared part, one position back.
        k[0, :, g, :FAST] += 0.9 * shared[:, None]
        v[0, :, g] += own[mine].T
        v[1, :, g] += own[mine].T
        # Layer 1: slow planes hardly turn within the window, so features compared there are compared at any distance.
        slow = np.concatenate([np.arange(R // 2, R), np.arange(R // 2, R) + R])
        k[1, :, g, slow] += SHARP * told[mine][: len(slow)]
        for n in range(g * N // K, (g + 1) * N // K):
            q[0, :, n, :FAST] += 0.9 * shared[:, None] * np.cos(angle)
            q[0, :, n, R : R + FAST] -= 0.9 * shared[:, None] * np.sin(angle)
            o[0, n] += 0.06 * K / N * told[mine]
            q[1, :, n, slow] += SHARP * own[mine][: len(slow)]
            o[1, n] += 0.12 * K / N * own[mine]
    return jax.tree.map(lambda x: jnp.asarray(x, config.param_dtype), params)


def main() -> None:
    data, target = sys.argv[1:]
    config = build(ModelConfig, architecture(), "model")
    tokenizer = load_tokenizer(f"{data}/tokenizer.json")
    print(hf.save(start(config), config, tokenizer, target, dtype="float32"))


if __name__ == "__main__":
    main()
