"""Names and layouts of a Llama's tensors in files and here: one table, read by import and export.

A layout like `(N H) D -> D N H` gives the axes of a tensor in a Hugging Face file, and of the parameter here. Letters:
D model, N query heads, K key heads, H head width, F MLP, V vocabulary. Hugging Face has linear weights as [out, in],
and rotary planes in the same half-split order as here, so no rows are permuted. Layers are separate tensors in files
and stacked here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Name(NamedTuple):
    """One row: our parameter path, the Hugging Face and llama.cpp names, and the layout of one layer's tensor."""

    path: str
    hf: str
    gguf: str
    layout: str

    @property
    def stacked(self) -> bool:
        """Whether the parameter has one such tensor for each layer, stacked on axis 0."""
        return self.path.startswith("layers/")


_ATTENTION, _MLP = "model.layers.{i}.self_attn.", "model.layers.{i}.mlp."
_NORM1, _NORM2 = "model.layers.{i}.input_layernorm.", "model.layers.{i}.post_attention_layernorm."
NAMES = (
    Name("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", "V D -> V D"),
    Name("layers/attention_norm/scale", _NORM1 + "weight", "blk.{i}.attn_norm.weight", "D -> D"),
    Name("layers/attention/q/kernel", _ATTENTION + "q_proj.weight", "blk.{i}.attn_q.weight", "(N H) D -> D N H"),
    Name("layers/attention/k/kernel", _ATTENTION + "k_proj.weight", "blk.{i}.attn_k.weight", "(K H) D -> D K H"),
    Name("layers/attention/v/kernel", _ATTENTION + "v_proj.weight", "blk.{i}.attn_v.weight", "(K H) D -> D K H"),
    Name("layers/attention/o/kernel", _ATTENTION + "o_proj.weight", "blk.{i}.attn_output.weight", "D (N H) -> N H D"),
    Name("layers/mlp_norm/scale", _NORM2 + "weight", "blk.{i}.ffn_norm.weight", "D -> D"),
    Name("layers/mlp/gate/kernel", _MLP + "gate_proj.weight", "blk.{i}.ffn_gate.weight", "F D -> D F"),
    Name("layers/mlp/up/kernel", _MLP + "up_proj.weight", "blk.{i}.ffn_up.weight", "F D -> D F"),
    Name("layers/mlp/down/kernel", _MLP + "down_proj.weight", "blk.{i}.ffn_down.weight", "D F -> F D"),
    Name("norm/scale", "model.norm.weight", "output_norm.weight", "D -> D"),
    Name("lm_head/kernel", "lm_head.weight", "output.weight", "V D -> D V"),
)
# Buffers in files of older conversions: they follow from config.json and are not parameters.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def sizes(config: Any) -> dict[str, int]:
    """Returns the length of every axis letter of a ModelConfig."""
    c = config
    return dict(V=c.vocab_size, D=c.d_model, F=c.d_mlp, N=c.num_heads, K=c.num_kv_heads, H=c.head_dim, L=c.num_layers)


def names(config: Any) -> tuple[Name, ...]:
    """Returns the rows for a ModelConfig: without lm_head if embeddings are tied."""
    return tuple(n for n in NAMES if not (config.tie_embeddings and n.path == "lm_head/kernel"))


def _sides(layout: str) -> tuple[list[list[str]], list[str], list[str]]:
    """Returns (groups of the file's axes, those axes flat, our axes)."""
    file_axes, our_axes = layout.split(" -> ")
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", file_axes)]
    return groups, [a for g in groups for a in g], our_axes.split()


def file_shape(layout: str, size: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape of one layer's tensor in a file."""
    return tuple(math.prod(size[a] for a in group) for group in _sides(layout)[0])


def our_shape(layout: str, size: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape of one layer's parameter here."""
    return tuple(size[a] for a in _sides(layout)[2])


def from_file(tensor: np.ndarray, layout: str, size: Mapping[str, int]) -> np.ndarray:
    """Returns one layer's parameter as a view of a file's tensor."""
    _, flat, ours = _sides(layout)
    return tensor.reshape([size[a] for a in flat]).transpose([flat.index(a) for a in ours])


def to_file(parameter: np.ndarray, layout: str, size: Mapping[str, int]) -> np.ndarray:
    """Returns a file's tensor from one layer's parameter: the inverse of `from_file`."""
    _, flat, ours = _sides(layout)
    return parameter.transpose([ours.index(a) for a in flat]).reshape(file_shape(layout, size))
