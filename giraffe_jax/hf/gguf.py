"""Llama weights from a GGUF file: the header as a ModelConfig, quantised tensors as float32 numbers.

llama.cpp has the rows of the query and key weights interleaved (plane i of a head in rows 2i and 2i+1); Hugging Face
and this project have them half-split (rows i and i + head_dim/2). All other tensors are as in the Hugging Face files.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError, nearest
from giraffe_jax.hf.config import model_config, size
from giraffe_jax.hf.read import Tensor
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import frequencies
from giraffe_jax.tokenizer.gguf import File

# llama.* keys that do not change the model; `scaling.finetuned` is information only.
_HARMLESS = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "expert_count", "expert_used_count",
}  # fmt: skip
_NUMBERS = {
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scale_linear", "rope.scaling.factor",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
FREQUENCIES = "rope_freqs.weight"  # divides each plane's frequency


def config(file: File, tensors: Mapping[str, Tensor], **overrides: Any) -> ModelConfig:
    """Returns the ModelConfig of a GGUF file. `rope_freqs.weight` becomes the method `llama3` if llama3 has these
    frequencies, else `longrope`.

    Args:
      tensors: those of the file, from `tensors`.
      **overrides: more fields of ModelConfig to set (param_dtype, ...).

    Raises:
      ConfigError: not a Llama, keys that are missing, unknown or have wrong values, rope scaling that is not supported.
    """
    meta, where = file.metadata, str(file.path)
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise ConfigError(f"{where}: general.architecture is {architecture!r}: not a Llama.")
    c = {k.removeprefix("llama."): v for k, v in meta.items() if k.startswith("llama.")}
    unknown = sorted(c.keys() - _READ - _HARMLESS)
    if unknown:
        raise ConfigError(
            f"{where}: unknown key llama.{unknown[0]} = {c[unknown[0]]!r}: what it does to the model is not known here."
            f"{nearest(unknown[0], sorted(_READ))}"
        )
    required = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
    required.append("attention.layer_norm_rms_epsilon")
    missing = [f"llama.{k}" for k in required if k not in c] + (
        ["token_embd.weight"] if "token_embd.weight" not in tensors else []
    )
    if missing:
        raise ConfigError(f"{where}: missing {missing}.")
    if c.get("expert_count", 0):
        raise ConfigError(f"{where}: llama.expert_count is {c['expert_count']}: experts are not a plain Llama.")
    heads, width = size(c, "attention.head_count", where), size(c, "embedding_length", where)
    head_dim = size(c, "attention.key_length", where, width // heads)
    for key in sorted(_NUMBERS & c.keys()):
        if isinstance(c[key], bool) or not isinstance(c[key], int | float) or not 0 < c[key] < math.inf:
            raise ConfigError(f"{where}: llama.{key} must be a positive, finite number, got {c[key]!r}.")
    for key in ("attention.value_length", "rope.dimension_count"):
        if c.get(key, head_dim) != head_dim:
            raise ConfigError(f"{where}: llama.{key} is {c[key]}, allowed is the head width {head_dim}.")
    query = tensors["blk.0.attn_q.weight"].shape if "blk.0.attn_q.weight" in tensors else None
    if query != (heads * head_dim, width):  # a corrupted number here could allocate any amount of memory
        raise ConfigError(
            f"{where}: the header says {heads} heads of width {head_dim} in a model of width {width}, so"
            f" blk.0.attn_q.weight must have shape {[heads * head_dim, width]}, got {query and list(query)}."
        )
    theta, length = float(c.get("rope.freq_base", 10000.0)), size(c, "context_length", where)
    positions, original = _positions(c, tensors, head_dim, theta, length, where)
    fields = dict(
        vocab_size=tensors["token_embd.weight"].shape[0],
        d_model=width,
        d_mlp=size(c, "feed_forward_length", where),
        num_layers=size(c, "block_count", where),
        num_heads=heads,
        num_kv_heads=size(c, "attention.head_count_kv", where, heads),
        head_dim=head_dim,
        theta=theta,
        original_len=original,
        # rounds the file's float32 back to decimal: 1e-5, not 9.999999747378752e-06
        norm_eps=float(f"{c['attention.layer_norm_rms_epsilon']:.7g}"),
        tie_embeddings="output.weight" not in tensors,
        positions=positions,
    )
    return model_config(fields | overrides, where)


def _positions(
    c: Mapping[str, Any], tensors: Mapping[str, Tensor], head_dim: int, theta: float, length: int, where: str
) -> tuple[list[dict[str, Any]], int]:
    """Returns (methods, original_len) of the rope scaling that the header and `rope_freqs.weight` describe."""
    kind, factor = c.get("rope.scaling.type", "none"), c.get("rope.scaling.factor", c.get("rope.scale_linear", 1.0))
    original = size(c, "rope.scaling.original_context_length", where, length)
    if "rope.scale_linear" in c and "rope.scaling.type" not in c:
        kind = "linear"
    if FREQUENCIES in tensors:
        if kind != "none":
            raise ConfigError(f"{where}: {FREQUENCIES} and rope scaling {kind!r} together are not understood.")
        return _from_divisors(tensors[FREQUENCIES].read(), head_dim, theta, length, where)
    if kind == "none" or (kind == "linear" and factor == 1):
        return [], length
    if kind == "linear":
        return [dict(name="linear", factor=factor)], original
    if kind == "yarn":
        # llama.cpp multiplies the gain by 1 + 0.1 ln(factor) itself; attn_factor comes on top of that.
        gain = c.get("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * float(np.log(factor)))
        betas = {k: c[f"rope.scaling.yarn_{k}"] for k in ("beta_fast", "beta_slow") if f"rope.scaling.yarn_{k}" in c}
        return [dict(name="yarn", factor=factor, attention_factor=gain, **betas)], original
    raise ConfigError(f"{where}: llama.rope.scaling.type is {kind!r}; allowed are none, linear, yarn.")


def _from_divisors(
    divisors: np.ndarray, head_dim: int, theta: float, length: int, where: str
) -> tuple[list[dict[str, Any]], int]:
    """Returns (methods, original_len): the llama3 scaling with these divisors, else longrope with the divisors."""
    if divisors.shape != (head_dim // 2,) or not (np.isfinite(divisors).all() and (divisors > 0).all()):
        summary = f"got shape {list(divisors.shape)}, smallest {divisors.min(initial=np.inf)}"
        raise ConfigError(f"{where}: {FREQUENCIES} must be {head_dim // 2} positive numbers, {summary}.")
    plain = theta ** (-2 * np.arange(head_dim // 2) / head_dim)
    factor = round(float(divisors.max()), 4)
    if factor >= 1:
        llama3 = [dict(name="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)]
        scaled, _ = frequencies(llama3, head_dim=head_dim, theta=theta, original_len=8192)
        if np.allclose(plain / divisors, scaled, rtol=1e-5, atol=0):
            return llama3, 8192
    values = [float(d) for d in divisors]
    return [dict(name="longrope", short_factor=values, long_factor=values, attention_factor=1.0)], length


def tensors(file: File) -> dict[str, Tensor]:
    """Returns the file's tensors; reading one dequantises it to float32 and un-permutes query and key rows."""
    meta = file.metadata
    heads = meta.get("llama.attention.head_count", 1)
    key_heads = meta.get("llama.attention.head_count_kv", heads)

    def reader(t: Any):
        def read() -> np.ndarray:
            from gguf.quants import dequantize

            try:
                values = np.asarray(dequantize(t.data, t.tensor_type), np.float32)
            except (NotImplementedError, ValueError) as e:
                raise ConfigError(f"{file.path}: {t.name}: cannot dequantise type {t.tensor_type.name} ({e}).") from e
            values = values.reshape(shape(t))
            if t.name.endswith("attn_q.weight"):
                return unpermute(values, heads)
            return unpermute(values, key_heads) if t.name.endswith("attn_k.weight") else values

        return read

    def shape(t: Any) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(t.shape))

    return {t.name: Tensor(shape(t), file.path, reader(t)) for t in file.reader.tensors}


def unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns [num_heads * H, D] with each head's rows moved from interleaved (2i, 2i+1) to half-split (i, i + H/2)."""
    out, width = rows.shape
    pairs = rows.reshape(num_heads, out // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(out, width)


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns [num_heads * H, D] with each head's rows moved from half-split to interleaved: undoes `unpermute`."""
    out, width = rows.shape
    halves = rows.reshape(num_heads, 2, out // num_heads // 2, width)
    return halves.swapaxes(1, 2).reshape(out, width)
