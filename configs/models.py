"""Models by name: the published shapes of Llama checkpoints, as config functions.

    from configs import models
    c.model = models.llama2_7b()          # in a config that trains from scratch, or for `giraffe plan`
    giraffe train --config=...            # with `source`, the shape comes with the weights: no model needed

Numbers are those of each checkpoint's config.json. `original_len` is the length it was pretrained on, before any
scaling its own config applies; models that extend themselves (Llama 3.1, 3.2) say so in `positions`.
"""

from typing import Any

from ml_collections import ConfigDict


def llama(vocab_size: int, d_model: int, d_mlp: int, num_layers: int, num_heads: int, **rest: Any) -> ConfigDict:
    """Returns a Llama's shape; by default num_kv_heads is num_heads and head_dim is d_model / num_heads."""
    shape = dict(vocab_size=vocab_size, d_model=d_model, d_mlp=d_mlp, num_layers=num_layers, num_heads=num_heads)
    return ConfigDict(shape | dict(num_kv_heads=num_heads, head_dim=d_model // num_heads) | rest)


def _llama3(factor: float) -> list[dict[str, Any]]:
    return [dict(name="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)]


def giraffe_mini() -> ConfigDict:
    """0.6 million parameters, trained on 256 tokens by experiments/mini."""
    return llama(1280, 128, 384, 2, 4, original_len=256, tie_embeddings=True)


def llama_7b() -> ConfigDict:
    """Llama (arXiv:2302.13971), 2,048 tokens."""
    return llama(32000, 4096, 11008, 32, 32, original_len=2048, norm_eps=1e-6)


def llama_13b() -> ConfigDict:
    """Llama (arXiv:2302.13971), 2,048 tokens: what the Giraffe paper extends."""
    return llama(32000, 5120, 13824, 40, 40, original_len=2048, norm_eps=1e-6)


def llama2_7b() -> ConfigDict:
    """Llama 2 (arXiv:2307.09288), 4,096 tokens."""
    return llama(32000, 4096, 11008, 32, 32, original_len=4096)


def llama2_13b() -> ConfigDict:
    """Llama 2 (arXiv:2307.09288), 4,096 tokens."""
    return llama(32000, 5120, 13824, 40, 40, original_len=4096)


def llama2_70b() -> ConfigDict:
    """Llama 2 (arXiv:2307.09288), 4,096 tokens."""
    return llama(32000, 8192, 28672, 80, 64, num_kv_heads=8, original_len=4096)


def llama3_8b() -> ConfigDict:
    """Llama 3 (arXiv:2407.21783), 8,192 tokens."""
    return llama(128256, 4096, 14336, 32, 32, num_kv_heads=8, theta=500000.0, original_len=8192)


def llama3_70b() -> ConfigDict:
    """Llama 3 (arXiv:2407.21783), 8,192 tokens."""
    return llama(128256, 8192, 28672, 80, 64, num_kv_heads=8, theta=500000.0, original_len=8192)


def llama3_1_8b() -> ConfigDict:
    """Llama 3.1: Llama 3, extended from 8,192 to 131,072 tokens by its own scaling."""
    return ConfigDict(llama3_8b().to_dict() | dict(positions=_llama3(8.0)))


def llama3_1_70b() -> ConfigDict:
    """Llama 3.1: Llama 3, extended from 8,192 to 131,072 tokens by its own scaling."""
    return ConfigDict(llama3_70b().to_dict() | dict(positions=_llama3(8.0)))


def llama3_2_1b() -> ConfigDict:
    """Llama 3.2, 1B: tied embeddings, scaling factor 32."""
    rest = dict(num_kv_heads=8, theta=500000.0, original_len=8192, tie_embeddings=True, positions=_llama3(32.0))
    return llama(128256, 2048, 8192, 16, 32, **rest)


def llama3_2_3b() -> ConfigDict:
    """Llama 3.2, 3B: tied embeddings, scaling factor 32."""
    rest = dict(num_kv_heads=8, theta=500000.0, original_len=8192, tie_embeddings=True, positions=_llama3(32.0))
    return llama(128256, 3072, 8192, 28, 24, **rest)


def smollm2_135m() -> ConfigDict:
    """SmolLM2 (arXiv:2502.02737), 8,192 tokens."""
    return llama(49152, 576, 1536, 30, 9, num_kv_heads=3, theta=100000.0, original_len=8192, tie_embeddings=True)


def smollm2_360m() -> ConfigDict:
    """SmolLM2 (arXiv:2502.02737), 8,192 tokens."""
    return llama(49152, 960, 2560, 32, 15, num_kv_heads=5, theta=100000.0, original_len=8192, tie_embeddings=True)


def smollm2_1_7b() -> ConfigDict:
    """SmolLM2 (arXiv:2502.02737), 8,192 tokens."""
    return llama(49152, 2048, 8192, 24, 32, theta=130000.0, original_len=8192, tie_embeddings=True)
