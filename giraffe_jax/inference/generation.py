"""Generation with a KV cache: prefill, decode, and the loop around them.

The compiled functions are module-level and pure. The numbers of a position method (frequencies, gain, length) are
arguments, so methods that differ only in numbers share one compilation. Shapes are padded to buckets for the same
reason.

For methods whose frequencies depend on the sequence length, `policy` says which length they read while text grows:

- "pinned": one length for the whole generation, by default prompt + n. Cached decoding equals a full forward pass.
- "per_call": the length so far; cached keys keep the rotation they were cached with, as in transformers.
- "running": the length so far, also for old keys: the cache holds raw keys, which are rotated in every step.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from giraffe_jax.config import ConfigError
from giraffe_jax.inference.scoring import Loaded, Tokens, _forward, _program
from giraffe_jax.model import Cache, ModelConfig, logits
from giraffe_jax.positions import Encoding, length_dependent, needs_raw_keys

Policy = Literal["pinned", "per_call", "running"]


def prefill(
    lm: Loaded,
    tokens: Tokens,
    lengths: Int[Array | np.ndarray, "B"],
    encoding: Encoding,
    *,
    capacity: int,
    raw: bool = False,
) -> tuple[Float[Array, "B V"], Cache]:
    """Returns the logits at each prompt's last token, and the KV cache of the prompts.

    Args:
      lm: the model.
      tokens: prompts, padded on the right.
      lengths: tokens of each prompt.
      encoding: with the positions of the tokens; without positions they are 0, 1, 2, ...
      capacity: size of the cache in tokens: prompt and generated ones.
      raw: cache unrotated keys: for policy "running", and methods of several bands.

    Raises:
      ConfigError: rotated keys, for an encoding that needs raw ones (`check_cache`).
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    check_cache(encoding, raw)
    lengths = jnp.asarray(lengths, jnp.int32)
    if encoding.positions is None:
        row_lengths = lengths if length_dependent(encoding) else None  # without padding
        places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.float32), tokens.shape)
        encoding = encoding.at(places, length=row_lengths)
    return _prefill(_program(lm.config), lm.params, tokens, lengths, encoding, capacity=capacity, raw=raw)


def decode_step(
    lm: Loaded, token: Int[Array | np.ndarray, "B"], encoding: Encoding, cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
    """Returns the logits after one more token in each row, and the cache with that token.

    encoding: with the tokens' positions [B, 1]; without positions they are the tokens' cache slots, `cache.index`.
    """
    check_cache(encoding, cache.raw)
    if encoding.positions is None:
        encoding = encoding.at(cache.index[:, None])
    return _step(_program(lm.config), lm.params, jnp.asarray(token, jnp.int32), encoding, cache)


def check_cache(encoding: Encoding, raw: bool) -> None:
    """Raises ConfigError if the method needs raw keys: rotated ones in the cache would be wrong for later tokens."""
    if not raw and length_dependent(encoding):
        raise ConfigError(
            "cache: keys are cached rotated, but with these methods their rotation changes as the sequence grows. Pin "
            "the length (bind(..., length=tokens)), or keep raw keys: prefill(..., raw=True), policy 'running'."
        )
    if not raw and needs_raw_keys(encoding):
        raise ConfigError("cache: several bands rotate a key in several ways; keep raw keys: prefill(..., raw=True).")


def generate(
    lm: Loaded,
    prompts: Sequence[Sequence[int]],
    n: int,
    encoding: Encoding | None = None,
    *,
    length: float | None = None,
    policy: Policy = "pinned",
    stop: Sequence[int] | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    batch: int | None = None,
    width: int | None = None,
) -> list[list[int]]:
    """Returns for each prompt up to `n` new tokens; a stop token ends a row and is left out.

    At temperature 0, a row's tokens do not depend on the other prompts of the call.

    Args:
      lm: the model.
      prompts: token ids, of any lengths.
      n: most tokens to generate.
      encoding: without positions; by default the config's own.
      length: sequence length in tokens for policy "pinned"; by default each prompt's own length plus n.
      policy: which length methods read while text grows; see the module's docstring.
      stop: ids that end a row; by default the tokenizer's end tokens.
      temperature: of sampling; 0 takes the most likely token.
      key: PRNG key, needed for a temperature above 0.
      batch: prompts in one forward pass; by default all.
      width: tokens to which prompts are padded, so that calls share a compilation; by default the longest's bucket.

    Raises:
      ConfigError: an empty prompt, a token outside the vocabulary, a temperature without a key, an unknown policy.
    """
    encoding = lm.config.bind() if encoding is None else encoding
    _check(lm, prompts, n, policy, temperature, key)
    dependent = length_dependent(encoding)
    if dependent and policy == "per_call" and needs_raw_keys(encoding.replace(length=np.float32(1))):
        raise ConfigError(
            "generate: policy must be 'pinned' or 'running' where several bands rotate keys, got 'per_call'."
        )
    if not dependent or (policy == "pinned" and length is not None):
        encoding = encoding if length is None else encoding.replace(length=np.float32(length))
        groups = {length: list(range(len(prompts)))}
    else:
        # One length argument serves a whole batch, so only prompts of the same length can share one.
        groups = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(len(prompt), []).append(i)
    ends = _stop(lm.tokenizer, stop)
    longest = max(map(len, prompts), default=1)
    width = max(longest, width or _bucket(longest))
    settings = dict(policy=policy if dependent else "pinned", sample=temperature > 0, room=_bucket(n))
    outputs: list[list[int]] = [[] for _ in prompts]
    for members in groups.values():
        pinned = encoding
        if dependent and policy == "pinned" and length is None:
            pinned = encoding.replace(length=np.float32(len(prompts[members[0]]) + n))
        size = batch or _bucket(len(members), least=1)
        for start in range(0, len(members), size):
            rows = members[start : start + size]
            row_key = jax.random.key(0) if key is None else jax.random.fold_in(key, rows[0])
            inputs = _pad([prompts[i] for i in rows], size, width)
            out = _generate(lm, inputs, pinned, n, ends, temperature, row_key, settings)
            for i, row in zip(rows, out, strict=False):
                outputs[i] = row
    return outputs


def _generate(lm: Loaded, inputs, encoding: Encoding, n: int, stop, temperature, key, settings) -> list[list[int]]:
    tokens, lengths = inputs
    capacity = tokens.shape[1] + settings["room"]
    if settings["policy"] != "pinned":
        encoding = encoding.replace(length=np.float32(lengths.max()))
    elif encoding.length is None:
        encoding = encoding.replace(length=np.float32(capacity))
    raw = settings["policy"] == "running" or needs_raw_keys(encoding)
    first, cache = prefill(lm, tokens, np.maximum(lengths, 1), encoding, capacity=capacity, raw=raw)
    inputs = (first, cache, encoding, n, stop, np.float32(temperature), key, lengths > 0)
    out, count = loop(_program(lm.config), lm.params, *inputs, **settings)
    return [row[:k].tolist() for row, k in zip(np.asarray(out), np.asarray(count), strict=True)]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "raw"))
def _prefill(config: ModelConfig, params, tokens, lengths, encoding: Encoding, *, capacity: int, raw: bool):
    batch, num_tokens = tokens.shape
    segments = (jnp.arange(num_tokens) < lengths[:, None]).astype(jnp.int32)
    cache = Cache.init(config, batch, capacity, raw=raw)
    with config.at_precision():
        hidden, filled = _forward(config, params, tokens, encoding, segments, cache)
        last_B1D = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
        # Slots past a row's length hold padding: they are overwritten before any token may attend to them.
        return logits(params, last_B1D)[:, 0], dataclasses.replace(filled, index=lengths)


@functools.partial(jax.jit, static_argnums=0)
def _step(config: ModelConfig, params, token, encoding: Encoding, cache: Cache):
    with config.at_precision():
        hidden, longer = _forward(config, params, token[:, None], encoding, None, cache)
        return logits(params, hidden)[:, 0], longer


@functools.partial(jax.jit, static_argnums=0, static_argnames=("policy", "sample", "room"))
def loop(
    config, params, first, cache, encoding, n, stop, temperature, key, alive, *, policy: Policy, sample: bool, room: int
):
    """Returns (tokens [B room], number of valid tokens of each row [B]): the decode loop of `generate`.

    Args:
      first, cache: from `prefill`: the logits [B V] after the prompts, and their KV cache.
      n: most tokens; `stop`: ids that end a row; `alive` [B]: False for rows that pad the batch.
      room: size of the result, static; at least n.
    """

    def choose(scores_BV, key):
        return jax.random.categorical(key, scores_BV / temperature) if sample else jnp.argmax(scores_BV, axis=-1)

    def take(scores_BV, step, out, count, alive, key):
        token = choose(scores_BV, jax.random.fold_in(key, step)).astype(jnp.int32)
        alive &= ~jnp.isin(token, stop)
        return token, out.at[:, step].set(token), count + alive.astype(jnp.int32), alive

    def unfinished(state):
        step, _, _, _, _, alive = state
        return (step < n) & alive.any()

    def body(state):
        step, token, cache, out, count, alive = state
        length = None if policy == "pinned" else jnp.max(jnp.where(alive, cache.index, 0)) + 1
        step_encoding = encoding.at(cache.index[:, None], length=length)
        scores_BV, cache = _step(config, params, token, step_encoding, cache)
        token, out, count, alive = take(scores_BV, step, out, count, alive, key)
        return step + 1, token, cache, out, count, alive

    out, count = jnp.zeros((first.shape[0], room), jnp.int32), jnp.zeros(first.shape[0], jnp.int32)
    token, out, count, alive = take(first, 0, out, count, alive, key)
    state = jax.lax.while_loop(unfinished, body, (jnp.int32(1), token, cache, out, count, alive))
    return state[3], state[4]


def _bucket(n: int, least: int = 16) -> int:
    """Returns the smallest of least * (1, 1.5, 2, 3, 4, 6, ...) that is at least n: few shapes, few compilations."""
    size = least
    while size < n:
        if size % 2 == 0 and size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def _pad(prompts: Sequence[Sequence[int]], size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
    return tokens, lengths


def _stop(tokenizer: Any, stop: Sequence[int] | None) -> np.ndarray:
    ids = list(tokenizer.end_ids if stop is None else stop)
    # Padded with -1, which is no token's id, to few sizes, and never empty.
    return np.array([*ids, *[-1] * (_bucket(max(1, len(ids)), least=4) - len(ids))], np.int32)


def _check(lm: Loaded, prompts: Sequence[Sequence[int]], n: int, policy: str, temperature: float, key: Any) -> None:
    if policy not in ("pinned", "per_call", "running"):
        raise ConfigError(f"generate: policy must be 'pinned', 'per_call' or 'running', got {policy!r}.")
    if n < 1:
        raise ConfigError(f"generate: n must be at least 1, got {n}.")
    if not 0 <= temperature < math.inf or (temperature > 0 and key is None):
        raise ConfigError(
            f"generate: temperature {temperature} must be 0 (most likely token), or positive and finite with a key."
        )
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"generate: prompts[{i}] is empty; start it with the tokenizer's first token.")
        wrong = [t for t in prompt if not 0 <= t < lm.config.vocab_size]
        if wrong:
            raise ConfigError(f"generate: prompts[{i}] has token {wrong[0]}; ids are 0 to {lm.config.vocab_size - 1}.")
