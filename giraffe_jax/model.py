"""Llama in Flax Linen: a pure function of (params, tokens, encoding).

Positions come in as an Encoding, so the model knows no context-extension method. Axes: B batch, T query tokens, S key
tokens, D model, N query heads, K key heads, H head width, R = H / 2 rotary planes, F MLP, V vocabulary, L layers.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from giraffe_jax import cpu, positions, sharding
from giraffe_jax.attention import Implementation, Place, attend, attend_rows, place_of_rows
from giraffe_jax.config import ConfigError
from giraffe_jax.positions import Encoding, Scaling
from giraffe_jax.sharding import constrain

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
# Low-rank adapters (giraffe_jax/lora.py) lie beside the kernel whose input and output axes they share.
PARAM_AXES |= {
    f"{path.removesuffix('kernel')}lora/{leaf}": leaf_axes
    for path, (_, *axes) in PARAM_AXES.items()
    if path.startswith("layers/") and path.endswith("/kernel")
    for fan_in in (2 if path.endswith("o/kernel") else 1,)
    for leaf, leaf_axes in {
        "a": ("layers", *axes[:fan_in], "rank"),
        "b": ("layers", "rank", *axes[fan_in:]),
        "scale": ("layers",),
    }.items()
}

Dtype = Literal["float32", "bfloat16"]
Precision = Literal["default", "high", "highest"]

# What a layer keeps for its backward pass, by the names given with checkpoint_name: (on the device, on the host).
REMAT: dict[str, tuple[list[str], list[str]]] = {
    "full": (["residual"], []),
    "save_attention": (["residual", "attention_out", "attention_lse"], []),
    "offload": ([], ["residual"]),
    "offload_attention": ([], ["residual", "attention_out", "attention_lse"]),
}


_TABLES = ("head_dim", "num_layers")  # sizes of tables made for a config: a damaged number must not ask for any size
_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a Llama, and how it reads positions."""

    vocab_size: int
    d_model: int
    d_mlp: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    theta: float = 10000.0  # RoPE base
    original_len: int = 2048  # pretraining context, tokens
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = False  # normalise queries and keys of each head before they are rotated
    positions: tuple[Mapping[str, Any], ...] = ()  # context-extension methods, applied left to right
    # "auto" takes the fastest that can do it (cudnn or pallas on a GPU); a name that cannot is refused with the reason.
    attention: Implementation = "auto"
    block_size: int | None = None  # tokens of a block of keys of blockwise attention; None leaves it to the backend
    remat: Literal["none", "full", "save_attention", "offload", "offload_attention"] = "none"
    # "none" keeps all that a layer's backward pass reads (on one CPU what products gave, and makes the rest again).
    # "full" keeps the layer's input and runs the layer again; "save_attention" keeps attention's output and log-sum-exp
    # too, so that all but attention is run again. The two offloads keep the same in the host's pinned memory.
    mlp_chunk: int = 0  # tokens of a row on one device that are in the MLP at once; 0 is all of them
    dtype: Dtype = "float32"  # of activations
    param_dtype: Dtype = "float32"
    # Of matmuls, as jax.lax.Precision names it. None is "highest" where dtype is float32 (by default a GPU rounds the
    # inputs of a float32 matmul to TF32, a TPU to bfloat16), and "default" where dtype is bfloat16.
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
        with np.errstate(all="ignore"):  # what overflows is named below
            bound = [self.bind(), self.bind(self.original_len)]  # without and with methods that follow the length
        if not all(np.isfinite(table).all() for e in bound for table in (e.inv_freq, e.gain)):
            raise ConfigError(
                f"model.positions: with head_dim {self.head_dim}, theta {self.theta:g} and original_len"
                f" {self.original_len} frequencies or gain of {', '.join(str(c['name']) for c in self.positions)} are"
                " not finite."
            )

    @property
    def precision(self) -> Precision:
        """The precision of matmuls: `matmul_precision`, or what its None stands for."""
        return self.matmul_precision or ("highest" if self.dtype == "float32" else "default")

    def at_precision(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context for tracing: matmuls in it, those of backward passes too, get the config's precision."""
        return jax.default_matmul_precision(self.precision)

    def bind(
        self, length: int | float | None = None, *, scaling: Scaling | None = None, where: str = "positions"
    ) -> Encoding:
        """Returns the Encoding of the config's positions, bound on the host; see positions.bind.

        Args:
          length: sequence length in tokens where it is known.
          scaling: other methods than the config's: evaluated positions may differ from trained ones.
          where: how `scaling` is called in errors: the key or the flag that it comes from.
        """
        return positions.bind(
            self.positions if scaling is None else scaling,
            where="model.positions" if scaling is None else where,
            head_dim=self.head_dim,
            theta=self.theta,
            original_len=self.original_len,
            length=length,
            num_layers=self.num_layers,
        )


def num_params(config: ModelConfig) -> int:
    """Returns the number of parameters."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("k", "v", "index", "positions"), meta_fields=("raw", "filled")
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values so far; `raw` caches hold unrotated keys, for methods whose rotation changes as they grow."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    index: Int[Array, "B"]  # slots filled in each row; a row's next token goes there
    positions: Float[Array, "B S"]  # of the cached keys, which raw caches rotate by
    raw: bool = False
    filled: bool = False  # whether anything has been read into it: from then on one token at a time goes in

    @classmethod
    def init(cls, config: ModelConfig, batch: int, capacity: int, dtype: Any = None, raw: bool = False) -> "Cache":
        """Returns an empty cache of `capacity` tokens for each of `batch` rows."""
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, dtype or config.dtype)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32), jnp.zeros((batch, capacity)), raw)


class Einsum(nn.Module):
    """A linear map without bias, kernel of any shape; `fan_in` of its axes are contracted."""

    equation: str
    shape: tuple[int, ...]
    fan_in: int
    config: ModelConfig

    @nn.compact
    def weights(self) -> dict[str, Any]:
        """Returns the kernel and, where giraffe_jax.lora has added one, its adapter."""
        scale = math.prod(self.shape[: self.fan_in]) ** -0.5
        kernel = self.param("kernel", nn.initializers.truncated_normal(scale), self.shape, self.config.param_dtype)
        adapter = {"lora": self.get_variable("params", "lora")} if self.has_variable("params", "lora") else {}
        return {"kernel": kernel, **adapter}

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        return linear(self.equation, x, self.weights())


def linear(equation: str, x: Float[Array, "B T ..."], weights: Mapping[str, Any]) -> Float[Array, "B T ..."]:
    """Returns x W, plus scale * (x A) B where the weights have a low-rank adapter: W A B is never made.

    Args:
      equation: of x and W, like "btd,dnh->btnh".
      x: input.
      weights: {"kernel": W}, and maybe {"lora": {"a": A, "b": B, "scale": []}}.
    """
    inputs, _, outputs = re.split(",|->", equation)
    read, written = inputs[2:], outputs[2:]
    kernel = weights["kernel"].astype(x.dtype)
    out = cpu.linear(x, kernel) if cpu.alone() else jnp.einsum(equation, x, kernel)
    if "lora" not in weights:
        return out
    adapter = weights["lora"]
    low_BTr = jnp.einsum(f"{inputs},{read}r->btr", x, adapter["a"].astype(x.dtype))
    low_BTr *= adapter["scale"].astype(x.dtype)
    return out + jnp.einsum(f"btr,r{written}->{outputs}", low_BTr, adapter["b"].astype(x.dtype))


class RMSNorm(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T *D"]) -> Float[Array, "B T *D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype)
        if cpu.alone():
            return cpu.rms_norm(x.reshape(-1, x.shape[-1]), scale, self.config.norm_eps).reshape(x.shape)
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.config.norm_eps)
        return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tables, key_tables, encoding: Encoding, local, place, cache):
        """Returns (out [B T D], this layer's cache or None).

        Args:
          tables, key_tables: one positions.Rotation per band, for these tokens and (raw caches) for the cached keys.
          local: None, or this layer's window and chunk.
          place: of these tokens.
          cache: None, or this layer's (k, v [B S K H], slots [B T], raw).
        """
        c = self.config
        D, N, K, H = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
        q = constrain(Einsum("btd,dnh->btnh", (D, N, H), 1, c, name="q")(x), "batch", "tokens", "heads", None)
        k = constrain(Einsum("btd,dkh->btkh", (D, K, H), 1, c, name="k")(x), "batch", None, "kv_heads", None)
        v = constrain(Einsum("btd,dkh->btkh", (D, K, H), 1, c, name="v")(x), "batch", None, "kv_heads", None)
        if c.qk_norm:
            q, k = RMSNorm(c, name="q_norm")(q), RMSNorm(c, name="k_norm")(k)
        if encoding.log_n is not None:
            start = 1 / jnp.log(encoding.original_len)
            scale = self.param("ssmax", lambda key: {"scale": jnp.full(N, start, c.param_dtype)})["scale"]
            q = q * (encoding.log_n[:, :, None] * scale.astype(jnp.float32))[..., None].astype(q.dtype)
        bias = encoding.bias
        if hasattr(bias, "with_params"):
            bias = bias.with_params(lambda name, init: self.param(name, lambda key: init(key, N)))
        q_bands = tuple(positions.rotate(q, t.q_cos, t.q_sin) for t in tables)
        settings: dict[str, Any] = dict(bands=encoding.bands, bias=bias, local=local, block_size=c.block_size)
        if cache is None or x.shape[1] > 1:
            k_bands = tuple(positions.rotate(k, t.k_cos, t.k_sin) for t in tables)
            out = attend_rows(q_bands, k_bands, v, place=place, implementation=c.attention, **settings)
        if cache is not None:
            cached_k, cached_v, slots, raw = cache
            stored = k if raw else positions.rotate(k, tables[0].k_cos, tables[0].k_sin)
            rows = jnp.arange(x.shape[0])[:, None]
            cached_k = cached_k.at[rows, slots].set(stored.astype(cached_k.dtype))
            cached_v = cached_v.at[rows, slots].set(v.astype(cached_v.dtype))
            if x.shape[1] == 1:
                k_bands = (cached_k.astype(k.dtype),) * len(tables)
                if raw:
                    k_bands = tuple(positions.rotate(k_bands[0], t.k_cos, t.k_sin) for t in key_tables)
                filled = place_of_rows(None, cached_k.shape[:2])
                settings |= dict(q_place=place, k_place=filled)
                settings |= dict(implementation="blockwise" if c.attention == "blockwise" else "auto")
                out, _ = attend(q_bands, k_bands, cached_v.astype(v.dtype), **settings)
            cache = (cached_k, cached_v)
        return Einsum("btnh,nhd->btd", (N, H, D), 2, c, name="o")(out), cache


class MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        weights = {
            "gate": Einsum("btd,df->btf", (c.d_model, c.d_mlp), 1, c, name="gate").weights(),
            "up": Einsum("btd,df->btf", (c.d_model, c.d_mlp), 1, c, name="up").weights(),
            "down": Einsum("btf,fd->btd", (c.d_mlp, c.d_model), 1, c, name="down").weights(),
        }
        if not 0 < c.mlp_chunk < x.shape[1]:
            return gated(x, weights, "batch", "tokens")
        return _gated_in_chunks(x, weights, c.mlp_chunk)


def gated(x: Float[Array, "B T D"], weights: Mapping[str, Any], *axes: str | None) -> Float[Array, "B T D"]:
    """Returns down(silu(gate(x)) * up(x)); `axes` are the logical axes of B and T."""
    if cpu.alone() and not any("lora" in w for w in weights.values()):
        kernels = (weights[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
        return cpu.gated(x.reshape(-1, x.shape[-1]), *kernels).reshape(x.shape)
    hidden_BTF = nn.silu(linear("btd,df->btf", x, weights["gate"])) * linear("btd,df->btf", x, weights["up"])
    return linear("btf,fd->btd", constrain(hidden_BTF, *axes, "mlp"), weights["down"])


def _gated_in_chunks(x: Float[Array, "B T D"], weights: Mapping[str, Any], chunk: int) -> Float[Array, "B T D"]:
    """Returns `gated` of `chunk` tokens of each device at a time; the backward pass runs each chunk again.

    Each device has its own copy of the weights before the loop: they are gathered once, and their gradients are summed
    over chunks on each device, in float32, and over devices once.
    """
    chunks, restore = sharding.local_chunks(x, chunk)
    copies = jax.tree.map(lambda w: sharding.copies(w.astype(x.dtype), x).astype(jnp.float32), weights)
    each = jax.vmap(jax.vmap(lambda x, w: gated(x, w, None, None)))
    return restore(jax.lax.map(jax.checkpoint(lambda part: each(part, copies)), chunks))


class Block(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer, shared):
        x = checkpoint_name(x, "residual")
        tables, key_tables, local, cached = layer
        shared_tables, shared_key_tables, encoding, place, slots, raw = shared
        tables = shared_tables if tables is None else tables
        key_tables = shared_key_tables if key_tables is None else key_tables
        cache = None if cached is None else (*cached, slots, raw)
        attention = Attention(self.config, name="attention")
        out, cached = attention(
            RMSNorm(self.config, name="attention_norm")(x), tables, key_tables, encoding, local, place, cache
        )
        x = constrain(x + out, "batch", "tokens", None)
        x = x + MLP(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return constrain(x, "batch", "tokens", None), cached


def _remat(block: Any, how: str) -> Any:
    """Returns the layer that keeps what REMAT says for its backward pass.

    On one CPU "none" keeps what matrix products gave, attention's among them; norms, rotations and sums are made again,
    which takes no time that can be measured (LOG.md, 2026-11-26).
    """
    policies = jax.checkpoint_policies
    if how == "none" and not cpu.alone():
        return block
    if how == "none":
        attended = policies.save_only_these_names(*REMAT["save_attention"][0])
        policy = policies.save_from_both_policies(policies.dots_saveable, attended)
    else:
        kept, offloaded = REMAT[how]
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=kept,
            names_which_can_be_offloaded=offloaded,
            offload_src="device",
            offload_dst="pinned_host",
        )
    return nn.remat(block, prevent_cse=False, policy=policy)


class Llama(nn.Module):
    """Token embeddings, L scanned blocks, a final norm. The unembedding is applied by the loss, in chunks."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        encoding: Encoding,
        segments: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Returns the final hidden states and the updated cache.

        Args:
          tokens: input ids.
          encoding: positions of these tokens, `config.bind(...).at(positions)`.
          segments: document of each token (0 padding); tokens attend within their document. None: one document a row.
          cache: with T > 1 the prompt fills an empty cache; with T = 1 one more token is decoded. Rows of different
            lengths are padded on the right; set `cache.index` to their lengths after the prompt.
        """
        c = self.config
        if cache is not None and cache.filled and tokens.shape[1] > 1:
            raise ConfigError(
                f"cache: {tokens.shape[1]} more tokens for a cache that is filled already; a prompt goes into an empty "
                "cache whole, and after it one token at a time."
            )
        embedding = self.param(
            "embed",
            lambda key: {"embedding": nn.initializers.normal(0.02)(key, (c.vocab_size, c.d_model), c.param_dtype)},
        )["embedding"]
        if not c.tie_embeddings:
            shape = (c.d_model, c.vocab_size)
            init = nn.initializers.truncated_normal(c.d_model**-0.5)
            self.param("lm_head", lambda key: {"kernel": init(key, shape, c.param_dtype)})
        x = constrain(embedding.astype(c.dtype)[tokens], "batch", "tokens", None)

        layer, shared, slots = self._inputs(encoding, segments, cache)
        scanned = nn.scan(
            _remat(Block, c.remat) if cache is None else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, (0, nn.broadcast)),
            length=c.num_layers,
        )
        x, cached = scanned(c, name="layers")(x, layer, shared)
        if cache is not None and cached is not None:
            rows = jnp.arange(tokens.shape[0])[:, None]
            index = cache.index + tokens.shape[1]
            kept = cache.positions.at[rows, slots].set(encoding.positions)
            cache = dataclasses.replace(cache, k=cached[0], v=cached[1], index=index, positions=kept, filled=True)
        return RMSNorm(c, name="norm")(x), cache

    def _inputs(self, encoding: Encoding, segments, cache: Cache | None):
        """Returns what the scan hands to each layer, what all layers share, and the cache slots of these tokens."""
        tables, key_tables, slots = positions.rotations(encoding), None, None
        if cache is not None:
            if positions.needs_raw_keys(encoding) and not cache.raw:
                raise ConfigError("several bands rotate a key in several ways: they need Cache.init(..., raw=True).")
            slots = cache.index[:, None] + jnp.arange(encoding.positions.shape[1])
            if cache.raw:
                rows = jnp.arange(slots.shape[0])[:, None]
                key_positions = cache.positions.at[rows, slots].set(encoding.positions)
                of_keys = dict(positions=key_positions, query_scale=None)
                if encoding.inv_freq.ndim > 2:  # of each token: a cache's row is one document, whose tokens are alike
                    of_keys |= dict(inv_freq=encoding.inv_freq[..., :1, :])
                if encoding.gain.ndim:
                    of_keys |= dict(gain=encoding.gain[:, :1])
                key_tables = positions.rotations(encoding.replace(**of_keys))
        # Methods may give each layer its own frequencies; otherwise the tables are shared, not repeated L times.
        per_layer, per_layer_keys = (t is not None and t[0].q_cos.ndim == 4 for t in (tables, key_tables))
        cached = None if cache is None else (cache.k, cache.v)
        local = None
        if encoding.window is not None or encoding.chunk is not None:
            sizes = [jnp.inf if size is None else size for size in (encoding.window, encoding.chunk)]
            local = tuple(jnp.broadcast_to(jnp.asarray(s, jnp.float32), self.config.num_layers) for s in sizes)
        layer = (tables if per_layer else None, key_tables if per_layer_keys else None, local, cached)
        shared_tables = (None if per_layer else tables, None if per_layer_keys else key_tables)
        raw = cache is not None and cache.raw
        light = encoding.replace(positions=None, query_scale=None)
        place = place_of_rows(segments, encoding.positions.shape)
        if slots is not None and slots.shape[1] == 1:  # one token more, of the cache's one document a row
            place = Place(slots, jnp.ones_like(slots), jnp.zeros_like(slots))
        return layer, (*shared_tables, light, place, slots, raw), slots


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Returns freshly initialised parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    encoding = config.bind(length=2).at(jnp.arange(2.0)[None])
    # Compiled: the initialisers and the model that `init` runs are hundreds of programs otherwise.
    return jax.jit(lambda key: dict(Llama(config).init(key, tokens, encoding)["params"]))(key)


def param_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns the logical axes of every parameter that the config's model may have: PARAM_AXES, and what its positions
    learn ("layers/attention/t5/table"), which is small and whole on every device."""

    def term(term: Any) -> Any:
        return jax.eval_shape(lambda: term.init(jax.random.key(0), config.num_heads))

    encoding = jax.eval_shape(lambda: config.bind(length=2).at(jnp.arange(2.0)[None]))
    terms = [t for t in getattr(encoding.bias, "terms", ()) if hasattr(t, "init")]
    learned = {f"{t.name}/{path}": x.ndim for t in terms for path, x in sharding.paths(term(t)).items()}
    learned["ssmax/scale"] = 1
    rows = {f"layers/attention/{name}": ("layers", *("features",) * axes) for name, axes in learned.items()}
    return PARAM_AXES | rows


def fit_params(config: ModelConfig, params: Mapping[str, Any], key: jax.Array) -> dict:
    """Returns the parameters of the config's model: those given, and fresh ones where it has more.

    A model that takes up a learned bias, SSMax or normalised queries and keys has parameters that its source had not;
    one that gives them up drops them. Adapters are kept.
    """
    shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: init_params(config, key)))
    given = traverse_util.flatten_dict(params)
    # Compiled, so that what is not asked for is not made.
    fresh = jax.jit(lambda: {k: traverse_util.flatten_dict(init_params(config, key))[k] for k in shapes.keys() - given})
    return traverse_util.unflatten_dict(
        {k: v for k, v in (dict(given) | fresh()).items() if k in shapes or "lora" in k}
    )


def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
    """Returns the matrix from hidden states to logits."""
    return params["lm_head"]["kernel"] if "lm_head" in params else params["embed"]["embedding"].T


def logits(params: Mapping[str, Any], hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Returns float32 logits of every token; for short rows, since this is the one array that grows with T times V."""
    return jnp.einsum(
        "btd,dv->btv", hidden, unembedding(params).astype(hidden.dtype), preferred_element_type=jnp.float32
    )
