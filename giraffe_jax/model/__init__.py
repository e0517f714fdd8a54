"""The Llama: a config, parameters, and a pure function of both."""

from giraffe_jax.model.cache import Cache
from giraffe_jax.model.config import ModelConfig
from giraffe_jax.model.llama import Llama
from giraffe_jax.model.params import fit_params, init_params, learned_by, logits, num_params, param_axes, unembedding

__all__ = [
    "Cache",
    "Llama",
    "ModelConfig",
    "fit_params",
    "init_params",
    "learned_by",
    "logits",
    "num_params",
    "param_axes",
    "unembedding",
]
