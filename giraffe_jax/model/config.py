"""A model's config: sizes, positions, dtypes, remat and attention."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from giraffe_jax import positions
from giraffe_jax.attention import Implementation
from giraffe_jax.attention.context import How
from giraffe_jax.config import ConfigError
from giraffe_jax.positions import Encoding, Scaling

# Every parameter's logical axes: sharding, conversion, adapters and checkpoints all read this table.
PARAM_AXES: dict[str, tuple[str, ...]] = {
    "embed/embedding": ("vocab", "embed"),
    "layers/attention_norm/scale": ("layers", "features"),
    "layers/attention/q/kernel": ("layers", "embed", "heads", "head_dim"),
    "layers/attention/k/kernel": ("layers", "embed", "kv_heads", "head_dim"),
    "layers/attention/v/kernel": ("layers", "embed", "kv_heads", "head_dim"),
    "layers/attention/o/kernel": ("layers", "heads", "head_dim", "embed"),
    "layers/attention/q_norm/scale": ("layers", "features"),
    "layers/attention/k_norm/scale": ("layers", "features"),
    "layers/mlp_norm/scale": ("layers", "features"),
    "layers/mlp/gate/kernel": ("layers", "embed", "mlp"),
    "layers/mlp/up/kernel": ("layers", "embed", "mlp"),
    "layers/mlp/down/kernel": ("layers", "mlp", "embed"),
    "norm/scale": ("features",),
    "lm_head/kernel": ("embed", "vocab"),
}

Dtype = Literal["float32", "bfloat16"]
Precision = Literal["default", "high", "highest"]

# What a layer keeps for its backward pass, by the names given with checkpoint_name: (on the device, on the host).
REMAT: dict[str, tuple[list[str], list[str]]] = {
    "save_matmuls": (["residual", "attention_out", "attention_lse"], []),  # and the output of each matmul
    "full": (["residual"], []),
    "save_attention": (["residual", "attention_out", "attention_lse"], []),
    "offload": ([], ["residual"]),
    "offload_residual": (["attention_out", "attention_lse"], ["residual"]),
    "offload_attention": ([], ["residual", "attention_out", "attention_lse"]),
}


_TABLES = ("head_dim", "num_layers")  # sizes of tables made for a config; limited, since a file may be damaged
_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a Llama, and how it reads positions."""

    vocab_size: int  # Tokens of the vocabulary.
    d_model: int  # Width of the residual stream.
    d_mlp: int  # Width of the MLP.
    num_layers: int  # Layers.
    num_heads: int  # Query heads.
    num_kv_heads: int  # Key and value heads; divides num_heads.
    head_dim: int  # Width of a head, twice the number of its rotary planes.
    theta: float = 10000.0  # RoPE base.
    original_len: int = 2048  # Length the model was pretrained on, in tokens. Position methods extend from there.
    norm_eps: float = 1e-5  # Added to the mean square in RMSNorm.
    tie_embeddings: bool = False  # The unembedding is the embedding's transpose.
    qk_norm: bool = False  # Normalises queries and keys of each head before they are rotated.
    # Position methods, applied left to right: [dict(name="yarn", factor=4.0)]. () is plain RoPE.
    positions: tuple[Mapping[str, Any], ...] = ()
    # "auto" takes the fastest implementation that supports the config on this device (cudnn or pallas on a GPU, pallas
    # on a TPU). Asking for one by name that does not support it is an error that says why.
    attention: Implementation = "auto"
    block_size: int | None = None  # Keys of a block of blockwise attention, in tokens. None is 256.
    # How devices that share rows (mesh.context) exchange keys and values. With "all-gather" each holds all keys and
    # values of a layer; with "ring" they are sent around during the matmuls, so a device holds one device's share.
    context: How = "all-gather"
    # What a layer keeps for its backward pass; the rest is recomputed. "none" keeps all. "save_matmuls" keeps outputs
    # of matmuls and of attention (on a single CPU the same as "none"). "full" keeps the layer's input only;
    # "save_attention" keeps attention's output and log-sum-exp too, so attention is not recomputed. "offload" and
    # "offload_attention" keep the same two sets in the host's pinned memory, "offload_residual" the input there and
    # attention's output on the device.
    remat: Literal[
        "none", "save_matmuls", "full", "save_attention", "offload", "offload_residual", "offload_attention"
    ] = "none"
    mlp_chunk: int = 0  # Tokens of a row, on one device, that the MLP computes at once. 0 is all of them.
    dtype: Dtype = "float32"  # Of activations.
    param_dtype: Dtype = "float32"  # Of weights. Trained weights must be float32.
    # Precision of matmuls, as jax.lax.Precision names it. None is "highest" where dtype is float32 (by default a GPU
    # would round inputs to TF32 and a TPU to bfloat16), and "default" where dtype is bfloat16.
    matmul_precision: Precision | None = None

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "d_mlp", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "original_len"):
            value: Any = getattr(self, name)
            largest = 2**16 if name in _TABLES else 2**31 - 1
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ConfigError(f"model.{name} must be a whole number, got {value!r}.")
            if not 1 <= value <= largest:
                limit = "at least 1" if value < 1 else f"at most {largest}"
                raise ConfigError(f"model.{name} must be {limit}, got {value}.")
        for name in ("theta", "norm_eps"):
            if not 0 < getattr(self, name) < _FLOAT32:
                raise ConfigError(f"model.{name} must be a positive, finite number, got {getattr(self, name)!r}.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"model.num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}.")
        for name, least in (("mlp_chunk", 0), ("block_size", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ConfigError(f"model.{name} must be at least {least}, got {getattr(self, name)}.")
        with np.errstate(all="ignore"):  # overflow is reported below
            bound = [self.bind(), self.bind(self.original_len)]  # without and with methods that follow the length
        if not all(np.isfinite(table).all() for e in bound for table in (e.inv_freq, e.gain)):
            raise ConfigError(
                f"model.positions: with head_dim {self.head_dim}, theta {self.theta:g} and original_len"
                f" {self.original_len} frequencies or gain of {', '.join(str(c['name']) for c in self.positions)} are"
                " not finite."
            )

    @property
    def precision(self) -> Precision:
        """The precision of matmuls: `matmul_precision`, or the default of its None for this dtype."""
        return self.matmul_precision or ("highest" if self.dtype == "float32" else "default")

    def at_precision(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context to trace in: matmuls, also those of backward passes, get the config's precision."""
        return jax.default_matmul_precision(self.precision)

    def bind(
        self, length: int | float | None = None, *, scaling: Scaling | None = None, where: str = "positions"
    ) -> Encoding:
        """Returns the Encoding of the config's positions, bound on the host; see positions.bind.

        Args:
          length: sequence length in tokens where it is known.
          scaling: methods to use in place of the config's, since evaluated positions may differ from trained ones.
          where: the name of `scaling` in errors: the key or the flag that it comes from.

        Raises:
          ConfigError: as `positions.bind`.
        """
        return positions.bind(
            self.positions if scaling is None else scaling,
            where="model.positions" if scaling is None else where,
            head_dim=self.head_dim,
            theta=self.theta,
            original_len=self.original_len,
            length=length,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
        )
