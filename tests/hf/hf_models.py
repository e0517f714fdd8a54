"""Tiny random checkpoints written with numpy and safetensors; names and shapes are spelled out here once more."""

import json
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def random_tensors(seed: int = 0, tied: bool = False, c: dict = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    heads, key_heads = c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = c.get("head_dim", d // heads)
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not tied:
        shapes["lm_head.weight"] = (v, d)
    for i in range(c["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (d,),
            f"model.layers.{i}.post_attention_layernorm.weight": (d,),
            f"model.layers.{i}.self_attn.q_proj.weight": (heads * head_dim, d),
            f"model.layers.{i}.self_attn.k_proj.weight": (key_heads * head_dim, d),
            f"model.layers.{i}.self_attn.v_proj.weight": (key_heads * head_dim, d),
            f"model.layers.{i}.self_attn.o_proj.weight": (d, heads * head_dim),
            f"model.layers.{i}.mlp.gate_proj.weight": (f, d),
            f"model.layers.{i}.mlp.up_proj.weight": (f, d),
            f"model.layers.{i}.mlp.down_proj.weight": (d, f),
        }
    tensors = {}
    for name, shape in shapes.items():
        spread = rng.standard_normal(shape) * (0.1 if len(shape) == 1 else 0.3)
        tensors[name] = (spread + (len(shape) == 1)).astype(np.float32)
    return tensors


def write(directory: Path, tensors: dict[str, np.ndarray], config: dict | None = None, **changes) -> Path:
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps((config or CONFIG) | changes))
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    return directory


def our_logits(checkpoint, tokens: np.ndarray) -> np.ndarray:
    import jax.numpy as jnp

    from giraffe_jax.model import Llama, logits

    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32), (batch, length))
    encoding = checkpoint.config.bind(length).at(positions)
    hidden, _ = Llama(checkpoint.config).apply({"params": checkpoint.params}, jnp.asarray(tokens, jnp.int32), encoding)  # type: ignore[misc]
    return np.asarray(logits(checkpoint.params, hidden))
