"""Export to a GGUF file that llama.cpp loads: exact, or rejected with the reason.

For any Llama, llama.cpp divides each plane's frequency by `rope_freqs.weight` if the file has it. So every method that
is one table of frequencies can be exported. There is no key for a gain beside the table, so the gain is multiplied into
the query weights. llama.cpp's own rope scalings are not used: fewer of its programs read them, and in lower precision.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.hf import names
from giraffe_jax.hf.export import checked, fold_gain
from giraffe_jax.hf.gguf import FREQUENCIES, permute
from giraffe_jax.hf.rope import reach_of, static_table
from giraffe_jax.hf.rounding import check_fits
from giraffe_jax.hf.write import check_new_file
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import Tokenizer
from giraffe_jax.tokenizer.to_gguf import describe

_HAS = (
    "It supports every method that `giraffe methods` lists as native or longrope, alone or composed, unless its "
    "frequencies depend on the length."
)
_FILE_TYPES = dict(float32=0, float16=1, bfloat16=32)  # llama.cpp's number for the type of most of a file's tensors


def save_gguf(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    path: str | Path,
    *,
    dtype: str = "float32",
    max_len: int | None = None,
) -> Path:
    """Writes a GGUF file, complete or not at all, and returns its path.

    Args:
      params: the parameter tree of the config's model.
      tokenizer: None writes a file without a tokenizer, which takes token ids only.
      path: a new file.
      dtype: "float32", "float16" or "bfloat16", of matrices; norms stay float32, which llama.cpp requires.
      max_len: context_length to write, in tokens; by default the length that the positions reach.

    Raises:
      ConfigError: positions or a tokenizer that llama.cpp cannot compute, parameters that do not fit the config, a
        weight that the dtype cannot hold, or a file that is there already.
    """
    try:
        import gguf
    except ImportError as e:
        raise ConfigError(f"{path}: writing GGUF needs `pip install gguf` (the extra giraffe-jax[gguf]).") from e
    check_new_file(path)
    if dtype not in _FILE_TYPES:
        raise ConfigError(f"dtype must be {', '.join(_FILE_TYPES)}, got {dtype!r}.")
    if config.qk_norm:
        raise ConfigError("model.qk_norm: llama.cpp's Llama does not normalise queries and keys; not exported.")
    inv_freq, gain = static_table(config, "llama.cpp's Llama", _HAS)
    vocabulary = {} if tokenizer is None else describe(tokenizer, config.vocab_size)
    flat = fold_gain(checked(params, config), gain)
    check_fits(flat, config, dtype, lambda row: row.gguf, norms=False)
    theta = np.float32(config.theta)
    divisors = _divisors(inv_freq, float(theta))

    path = Path(path)
    part = path.with_name(f".{path.name}.writing-{os.getpid()}")
    writer = gguf.GGUFWriter(part, "llama")
    _write_header(writer, config, float(theta), max_len or reach_of(config), dtype)
    for key, value in vocabulary.items():
        (writer.add_array if isinstance(value, list) else _ADD[type(value)](writer))(key, value)
    if not vocabulary:
        writer.add_tokenizer_model("no_vocab")
    try:
        _write_tensors(writer, flat, config, dtype, divisors)
        os.link(part, path)  # unlike a rename, fails if the path exists by now
    except FileExistsError:
        raise ConfigError(f"{path}: was made meanwhile by another process; nothing is overwritten.") from None
    finally:
        writer.close()
        part.unlink(missing_ok=True)
    return path


_ADD = {
    str: lambda writer: writer.add_string,
    bool: lambda writer: writer.add_bool,
    int: lambda writer: writer.add_uint32,
    float: lambda writer: writer.add_float32,
}


def _divisors(inv_freq: np.ndarray, theta: float) -> np.ndarray | None:
    """Returns the divisor of each plane's frequency, float32 [R], or None if the frequencies are plain RoPE's."""
    planes = len(inv_freq)
    plain = theta ** (-np.arange(planes) / planes)
    if np.allclose(plain, inv_freq, rtol=1e-7, atol=0):
        return None
    still = inv_freq <= plain * 1e-30  # a plane that does not turn
    return np.where(still, 1e30, plain / np.where(still, 1.0, inv_freq)).astype(np.float32)


def _write_header(writer: Any, c: ModelConfig, theta: float, length: int, dtype: str) -> None:
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(length)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_mlp)
    writer.add_block_count(c.num_layers)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)


def _write_tensors(writer: Any, flat: Mapping[str, Any], c: ModelConfig, dtype: str, divisors: Any) -> None:
    """Writes the tensors one by one, with one of them in memory at a time."""
    from gguf import GGMLQuantizationType
    from ml_dtypes import bfloat16

    size = names.sizes(c)
    kinds = dict(float32="F32", float16="F16", bfloat16="BF16")
    numbers = dict(float32=np.float32, float16=np.float16, bfloat16=bfloat16)
    plan = [(row, i) for row in names.names(c) for i in (range(c.num_layers) if row.stacked else [0])]

    def kind(shape: tuple[int, ...]) -> str:
        return "float32" if len(shape) == 1 else dtype

    for row, i in plan:
        shape = names.file_shape(row.layout, size)
        number_type = np.dtype(numbers[kind(shape)])
        raw = GGMLQuantizationType[kinds[kind(shape)]]
        count = int(np.prod(shape)) * number_type.itemsize
        writer.add_tensor_info(row.gguf.format(i=i), shape, np.dtype(f"u{number_type.itemsize}"), count, raw_dtype=raw)
    if divisors is not None:
        writer.add_tensor_info(FREQUENCIES, divisors.shape, divisors.dtype, divisors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for row, i in plan:
        parameter = flat[row.path][i] if row.stacked else flat[row.path]
        tensor = names.to_file(np.asarray(parameter), row.layout, size)
        if "attn_q." in row.gguf or "attn_k." in row.gguf:
            tensor = permute(tensor, c.num_heads if "attn_q." in row.gguf else c.num_kv_heads)
        tensor = tensor.astype(numbers[kind(tensor.shape)])
        writer.write_tensor_data(np.ascontiguousarray(tensor).view(f"u{tensor.dtype.itemsize}"))
    if divisors is not None:
        writer.write_tensor_data(divisors)
