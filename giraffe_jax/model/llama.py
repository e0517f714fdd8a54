"""Llama in Flax Linen: a pure function of (params, tokens, encoding).

Positions come in as an Encoding, so the model knows no context-extension method. Axes: B batch, T query tokens, S key
tokens, D model, N query heads, K key heads, H head width, R = H / 2 rotary planes, F MLP, V vocabulary, L layers.
"""

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from giraffe_jax import positions
from giraffe_jax.attention import Place, attend, attend_rows, place_of_rows
from giraffe_jax.attention.columns import Columns, columns_of
from giraffe_jax.config import ConfigError
from giraffe_jax.model.cache import Cache
from giraffe_jax.model.config import PARAM_AXES, REMAT, ModelConfig
from giraffe_jax.ops import cpu
from giraffe_jax.ops.choose import choose
from giraffe_jax.ops.linear import linear
from giraffe_jax.ops.mlp import gated, gated_in_chunks
from giraffe_jax.positions import Encoding
from giraffe_jax.positions.layers import limits_differ, of_layer
from giraffe_jax.sharding import constrain, of_residual

# Low-rank adapters (model/lora.py) are stored next to their kernel, with whose input and output axes they are sharded.
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


class Einsum(nn.Module):
    """A linear map without bias, kernel of any shape; `fan_in` of its axes are contracted."""

    equation: str
    shape: tuple[int, ...]
    fan_in: int
    config: ModelConfig

    @nn.compact
    def weights(self) -> dict[str, Any]:
        """Returns the kernel and, where model/lora.py has added one, its adapter."""
        scale = math.prod(self.shape[: self.fan_in]) ** -0.5
        kernel = self.param("kernel", nn.initializers.truncated_normal(scale), self.shape, self.config.param_dtype)
        adapter = {"lora": self.get_variable("params", "lora")} if self.has_variable("params", "lora") else {}
        return {"kernel": kernel, **adapter}

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """Returns the map of x, adapter included."""
        return linear(self.equation, x, self.weights())


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T *D"]) -> Float[Array, "B T *D"]:
        """Returns x / sqrt(mean(x^2) + norm_eps) * scale, in the dtype of x."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype)
        if choose().norm == "cpu":
            return cpu.rms_norm(x.reshape(-1, x.shape[-1]), scale, self.config.norm_eps).reshape(x.shape)
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.config.norm_eps)
        return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention of one layer: projections, rotation, attention, KV cache."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tables, key_tables, encoding: Encoding, place, cache):
        """Returns (out [B T D], this layer's cache or None).

        Args:
          tables, key_tables: one positions.Rotation per band, for these tokens and (raw caches) for the cached keys.
          place: of these tokens.
          cache: None, or this layer's (k, v [B S K H], slots [B T], raw).
        """
        c = self.config
        D, N, K, H = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
        q = constrain(Einsum("btd,dnh->btnh", (D, N, H), 1, c, name="q")(x), "batch", "tokens", "heads", None)
        k = constrain(Einsum("btd,dkh->btkh", (D, K, H), 1, c, name="k")(x), "batch", "tokens", "kv_heads", None)
        v = constrain(Einsum("btd,dkh->btkh", (D, K, H), 1, c, name="v")(x), "batch", "tokens", "kv_heads", None)
        if c.qk_norm:
            q, k = RMSNorm(c, name="q_norm")(q), RMSNorm(c, name="k_norm")(k)
        encoding = positions.with_learned(encoding, lambda item: self.param(item.name, lambda key: item.init(key, N)))
        if encoding.head_scale is not None:
            q = q * encoding.head_scale[..., None].astype(q.dtype)
        q_bands = tuple(positions.rotate(q, t.q_cos, t.q_sin) for t in tables)
        settings: dict[str, Any] = dict(bands=encoding.bands, bias=encoding.bias, block_size=c.block_size)
        if cache is None or x.shape[1] > 1:
            k_bands = tuple(positions.rotate(k, t.k_cos, t.k_sin) for t in tables)
            out = attend_rows(q_bands, k_bands, v, place=place, implementation=c.attention, how=c.context, **settings)
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
    """The gated MLP of one layer (SwiGLU)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the MLP of x, `config.mlp_chunk` tokens at a time."""
        c = self.config
        weights = {
            "gate": Einsum("btd,df->btf", (c.d_model, c.d_mlp), 1, c, name="gate").weights(),
            "up": Einsum("btd,df->btf", (c.d_model, c.d_mlp), 1, c, name="up").weights(),
            "down": Einsum("btf,fd->btd", (c.d_mlp, c.d_model), 1, c, name="down").weights(),
        }
        if not 0 < c.mlp_chunk < x.shape[1]:
            return gated(x, weights, "batch", "tokens")
        return gated_in_chunks(x, weights, c.mlp_chunk)


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer, shared):
        """Returns (x [B T D], this layer's cache or None); `layer` and `shared` are from `Llama._inputs`."""
        x = checkpoint_name(x, "residual")
        tables, key_tables, index, cached = layer
        shared_tables, shared_key_tables, encoding, place, slots, raw = shared
        tables = shared_tables if tables is None else tables
        key_tables = shared_key_tables if key_tables is None else key_tables
        if index is not None:
            encoding = encoding.replace(bands=of_layer(encoding.bands, index, self.config.num_layers))
        cache = None if cached is None else (*cached, slots, raw)
        attention = Attention(self.config, name="attention")
        out, cached = attention(
            RMSNorm(self.config, name="attention_norm")(x), tables, key_tables, encoding, place, cache
        )
        x = of_residual(x + out)
        x = x + MLP(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return of_residual(x), cached


def _remat(block: Any, policy_name: str) -> Any:
    """Returns the layer with the remat policy of this name, by REMAT.

    On one CPU "none" is "save_matmuls": norms, rotations and sums are recomputed, which takes no measurable time
    (LOG.md, 2026-11-26).
    """
    policies = jax.checkpoint_policies
    if policy_name == "none" and choose().remat == "all":
        return block
    kept, offloaded = REMAT["save_matmuls" if policy_name == "none" else policy_name]
    policy = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept,
        names_which_can_be_offloaded=offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )
    if policy_name in ("none", "save_matmuls"):
        policy = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(*kept))
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
          cache: with T > 1 the tokens are prompts and fill an empty cache (prefill); with T = 1 each row decodes one
            more token. Prompts of different lengths are padded on the right; after prefill set `cache.index` to their
            lengths.

        Raises:
          ConfigError: several tokens for a cache that is filled, or a cache of rotated keys for a method that needs raw
            ones.
        """
        c = self.config
        if cache is not None and cache.filled and tokens.shape[1] > 1:
            raise ConfigError(
                f"cache: {tokens.shape[1]} more tokens for a cache that is filled already; prefill the whole prompt "
                "into an empty cache, then decode one token at a time."
            )
        embedding = self.param(
            "embed",
            lambda key: {"embedding": nn.initializers.normal(0.02)(key, (c.vocab_size, c.d_model), c.param_dtype)},
        )["embedding"]
        if not c.tie_embeddings:
            shape = (c.d_model, c.vocab_size)
            init = nn.initializers.truncated_normal(c.d_model**-0.5)
            self.param("lm_head", lambda key: {"kernel": init(key, shape, c.param_dtype)})
        rows, length = tokens.shape
        heads = (c.num_heads, c.num_kv_heads)
        columns = Columns() if cache is not None else columns_of(batch=rows, tokens=length, heads=heads)
        tokens, encoding = columns.spread(tokens), encoding.reordered(columns.spread)
        x = of_residual(embedding.astype(c.dtype)[tokens])

        place = columns.place(place_of_rows(segments, (rows, length)))
        layer, shared, slots = self._inputs(encoding, place, cache)
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
        return RMSNorm(c, name="norm")(columns.restore(x)), cache

    def _inputs(self, encoding: Encoding, place: Place, cache: Cache | None):
        """Returns what the scan hands to each layer, what all layers share, and the cache slots of these tokens."""
        tables, key_tables, slots = positions.rotations(encoding), None, None
        if cache is not None:
            if positions.needs_raw_keys(encoding) and not cache.raw:
                raise ConfigError(
                    "cache: several bands rotate a key in several ways, or its rotation follows the length; it needs "
                    "unrotated keys: Cache.init(..., raw=True)."
                )
            slots = cache.index[:, None] + jnp.arange(encoding.positions.shape[1])
            if cache.raw:
                rows = jnp.arange(slots.shape[0])[:, None]
                key_positions = cache.positions.at[rows, slots].set(encoding.positions)
                key_tables = positions.rotations(encoding.of_cached_keys(key_positions))
        # Methods may give each layer its own frequencies; otherwise the tables are shared, not repeated L times.
        per_layer, per_layer_keys = (t is not None and t[0].q_cos.ndim == 4 for t in (tables, key_tables))
        cached = None if cache is None else (cache.k, cache.v)
        index = jnp.arange(self.config.num_layers) if limits_differ(encoding.bands) else None
        layer = (tables if per_layer else None, key_tables if per_layer_keys else None, index, cached)
        shared_tables = (None if per_layer else tables, None if per_layer_keys else key_tables)
        raw = cache is not None and cache.raw
        # The tables already contain these. Learned items may still read the positions.
        bands = tuple(band.replace(q_pos=None, k_pos=None) for band in encoding.bands)
        light = encoding.replace(bands=bands, key_pos=None, query_scale=None)
        light = light if encoding.learned else light.replace(positions=None)
        if slots is not None and slots.shape[1] == 1:  # decoding: a row of the cache is one document
            place = Place(slots, jnp.ones_like(slots), jnp.zeros_like(slots))
        return layer, (*shared_tables, light, place, slots, raw), slots
