"""A tiny random Llama over bytes, for tests that need some model and no particular one."""

import jax
import pytest

from giraffe_jax.inference import LM
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.tokenizer import ByteTokenizer


class Begun(ByteTokenizer):
    """The same for a model whose texts begin with the begin token."""

    prefix = (256,)


@pytest.fixture(scope="session")
def tiny() -> LM:
    config = ModelConfig(
        vocab_size=258, d_model=32, d_mlp=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, original_len=32
    )
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(2))
    params = jax.tree.map(lambda x: x * 2 if x.ndim > 1 else x, params)
    return LM(config, params, ByteTokenizer())
