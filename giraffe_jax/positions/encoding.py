"""Encoding: everything a forward pass knows about position, in one record; docs/encoding.md describes it for users."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Range:
    """A range of distances: low <= i // chunk - j // chunk < high, for query i and key j, indices in their document."""

    low: Any = 0.0
    high: Any = math.inf
    chunk: Any = 1.0  # tokens

    def holds(self, i: Any, j: Any) -> Any:
        """Returns whether pairs are in the range. It counts in int32, since a quotient of floats may round up."""
        low, high, chunk = (whole(x) for x in (self.low, self.high, self.chunk))
        apart = i // chunk - j // chunk
        return (apart >= low) & (apart < high)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Band:
    """A set of query-key pairs, and how they are rotated. All numbers are traced, so bands share compilations.

    It covers query i and key j, indices in their document (never positions), if
    low <= i // chunk - j // chunk < high, j < keys and the pair is in every range of `also`. The causal mask and
    document boundaries are applied on top. The bands of an Encoding must be disjoint; pairs in none are masked.
    Each of these limits is [], or [L] if layers differ.
    """

    low: Any = 0.0
    high: Any = math.inf
    chunk: Any = 1.0  # tokens
    keys: Any = math.inf  # only this many first tokens of a document are seen: attention sinks
    also: tuple[Range, ...] = ()  # further ranges that a pair has to be in: windows and chunks
    # Maps of positions [B T 1] to those to rotate by, [B T 1] or per plane [B T R]; pytrees (positions/bands.py: Line).
    q_pos: Any = None  # of queries; None: unchanged
    k_pos: Any = None  # of keys; None: Encoding.key_pos, which all bands share
    inv_freq: Any = None  # [R] or [L R], in place of the Encoding's
    gain: Any = None  # [], in place of the Encoding's
    mask: Any = None  # further mask(i, j) -> bool, a pytree; evaluated for every pair, so it cannot skip blocks

    def replace(self, **changes) -> "Band":
        """Returns a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges that a pair must be in, the band's own included."""
        return (Range(self.low, self.high, self.chunk), *self.also)

    def holds(self, i: Any, j: Any) -> Any:
        """Returns whether pairs are in the band; its limits must be scalars, those of one layer."""
        inside = j < whole(self.keys)
        for r in self.ranges:
            inside &= r.holds(i, j)
        return inside if self.mask is None else inside & self.mask(i, j)


def whole(limit: Any) -> Any:
    """Returns a number of tokens as int32; infinity becomes 2^30."""
    return jnp.minimum(jnp.asarray(limit, jnp.float32), 2.0**30).astype(jnp.int32)


CAUSAL = Band()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """First tokens of a document that keep the rotation they had before a method (LongRoPE's n-hat)."""

    tokens: Any  # [], how many
    stretch: Any  # [R] or [L R], multiplies their inv_freq
    gain: Any  # [], multiplies their gain


# Fields of an Encoding that may have an axis of tokens: (that axis, the smallest number of axes with which they do).
_OF_TOKENS = {
    "positions": (1, 2),
    "gain": (1, 2),
    "head_scale": (1, 3),
    "length": (1, 3),
    "query_scale": (-1, 2),
    "inv_freq": (-2, 3),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoding:
    """What attention needs to know about positions. Axes: B batch, T tokens, R rotary planes, L layers.

    Arrays are arguments of the compiled step, so encodings that differ only in numbers share one compilation. On the
    host, while methods are bound, they are float64 numpy; inside a step they are float32.
    """

    inv_freq: Any  # [R] or [L R], radians per token of each rotary plane; [B T R] or [L B T R] if tokens differ
    gain: Any  # [] or [B T], multiplies cos and sin, so logits get its square
    theta: Any  # [], RoPE base
    original_len: Any  # [], pretraining context, tokens
    positions: Any = None  # [B T], tokens since the document's start; never used for masking
    length: Any = None  # current length in tokens, for length-dependent methods: [], or [B T 1] of each document
    log_decay: Any = None  # [R], xPos: queries get exp(+p log_decay), keys exp(-p log_decay)
    query_scale: Any = None  # [B T] or [L B T], multiplies queries
    head_scale: Any = None  # [#B #T #N], multiplies the queries of each head; N query heads
    window: Any = None  # [] or [L], tokens: only keys less than this far back are seen; None for all
    chunk: Any = None  # [] or [L], tokens: only keys of the query's chunk are seen; a tuple combines; None for all
    start: Start | None = None
    limits: Any = None  # [K - 1], longest document of each choice but the last; inv_freq and gain then stack K choices
    key: Any = None  # PRNG key while training; None elsewhere
    pending: tuple = ()  # calls that need positions, length or key, in order
    bands: tuple[Band, ...] = ()  # empty: every earlier key, at its own position
    key_pos: Any = None  # the `k_pos` of bands that have none; None: unchanged
    num_layers: int | None = dataclasses.field(default=None, metadata={"static": True})
    num_heads: int | None = dataclasses.field(default=None, metadata={"static": True})
    learned: tuple[Any, ...] = ()  # items with parameters in every layer (positions/slot.py: Learned)
    bias: Any = None
    # bias(i, j, num_heads) -> [#B N T S], evaluated block by block on indices in the document, [#B 1 T 1] and
    # [#B 1 1 S]; a pytree, whose arrays get gradients: a jax.tree_util.Partial or a registered dataclass

    @property
    def head_dim(self) -> int:
        """Width of a head, twice the number of rotary planes."""
        return 2 * self.inv_freq.shape[-1]

    @property
    def xp(self):
        """numpy while binding on the host, jax.numpy inside a step: methods written with it serve both."""
        return jnp if isinstance(self.inv_freq, jax.Array) else np

    @property
    def planes(self):
        """Index of each rotary plane, [R]; plane 0 is the fastest."""
        return self.xp.arange(self.inv_freq.shape[-1], dtype=self.inv_freq.dtype)

    def replace(self, **changes) -> "Encoding":
        """Returns a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def reordered(self, move: Any) -> "Encoding":
        """Returns the encoding with its tokens permuted; call it after `at`. move(x, axis) permutes an array whose
        tokens are along `axis`."""
        moved = {}
        for name, (axis, least) in _OF_TOKENS.items():
            value = getattr(self, name)
            moved[name] = move(value, axis) if value is not None and jnp.ndim(value) >= least else value
        return self.replace(**moved)._with_maps(lambda x: move(x, -2))

    def of_cached_keys(self, positions: Any) -> "Encoding":
        """Returns the encoding of a KV cache's unrotated keys at these positions, [B S]; call it after `at`.

        Each row of a cache is one document, so the frequencies, gain and position maps of one token hold for all keys.
        """
        e = self._with_maps(lambda x: x[:, :1]).replace(positions=positions, query_scale=None)
        if e.inv_freq.ndim > 2:
            e = e.replace(inv_freq=e.inv_freq[..., :1, :])
        return e.replace(gain=e.gain[:, :1]) if e.gain.ndim else e

    def _with_maps(self, change: Any) -> "Encoding":
        """Returns the encoding with `change` applied to the per-token arrays of position maps, [B T 1] or [B T R]."""

        def of(maps):
            return jax.tree.map(lambda x: change(x) if jnp.ndim(x) == 3 else x, maps)

        bands = tuple(band.replace(q_pos=of(band.q_pos), k_pos=of(band.k_pos)) for band in self.bands)
        return self.replace(bands=bands, key_pos=of(self.key_pos))

    def choose(self, index) -> "Encoding":
        """Returns the encoding with one of its K stacked choices: `index` is [] for all tokens, or [B T] per token."""
        xp = self.xp
        inv_freq = xp.take(self.inv_freq, index, axis=0)
        if inv_freq.ndim == 4:  # [B T L R]
            inv_freq = jnp.moveaxis(inv_freq, 2, 0)
        return self.replace(inv_freq=inv_freq, gain=xp.take(self.gain, index, axis=0), limits=None)

    def at(self, positions, *, length=None, key=None, choice=None) -> "Encoding":
        """Returns the encoding of these positions: pending methods are applied, windows and chunks become `bands`.

        Args:
          positions: [B T], tokens since the document's start.
          length: current length in tokens, [] for all or [B] per row; by default the one given when binding, else that
            of each token's document, so that a document's frequencies do not depend on what else is in the batch.
          key: PRNG key of a training step; None turns training-time methods off.
          choice: [B], the index of the choice of `mixed` for each row; by default it follows from the length.

        Raises:
          ValueError: `choice` is given, but the encoding has no choices.
        """
        length = self.length if length is None else length
        if choice is not None and self.limits is None:
            raise ValueError("choice: there is nothing to choose from; only the method `mixed` has choices.")
        e = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.replace(pending=(), key=None, length=None))
        positions = jnp.asarray(positions, jnp.float32)
        if length is not None:
            length = jnp.asarray(length, jnp.float32)
            length = length[:, None, None] if length.ndim == 1 else length
        elif self.limits is not None or any("length" in call.needs for call in self.pending):
            length = document_sizes(positions)[..., None]
        e = e.replace(positions=positions, length=length, key=key)
        if e.limits is not None and length is not None:
            size = length if length.ndim == 0 else length[..., 0]
            index = jnp.sum(size[..., None] > e.limits, axis=-1)
            e = e.choose(index if choice is None else jnp.broadcast_to(jnp.asarray(choice)[:, None], positions.shape))
        if e.gain.ndim:  # [B T 1] while methods run, as lengths are
            e = e.replace(gain=e.gain[..., None])
        if length is not None and length.ndim and e.inv_freq.ndim == 2:  # [L 1 1 R], against [B T 1]
            e = e.replace(inv_freq=e.inv_freq[:, None, None])
        for i, call in enumerate(self.pending):
            e = call(e if key is None else e.replace(key=jax.random.fold_in(key, i)))
        if e.gain.ndim:
            e = e.replace(gain=e.gain[..., 0])
        return e.replace(key=None)._with_windows_in_bands()

    def _with_windows_in_bands(self) -> "Encoding":
        """Returns the encoding with `window` and `chunk` moved into its bands: masks are made from bands alone."""
        further = () if self.window is None else (Range(high=self.window),)
        further += tuple(Range(high=1.0, chunk=chunk) for chunk in jax.tree.leaves(self.chunk))
        if not further:
            return self
        further, causal = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (further, CAUSAL))
        bands = tuple(band.replace(also=(*band.also, *further)) for band in self.bands or (causal,))
        return self.replace(bands=bands, window=None, chunk=None)


def document_sizes(positions):
    """Returns the length of each token's document, [B T]: its largest position plus one; documents start at 0."""

    def row(positions_T):
        document_T = jnp.cumsum(positions_T == 0)
        return jax.ops.segment_max(positions_T, document_T, len(positions_T) + 1)[document_T] + 1

    return jax.vmap(row)(positions)
