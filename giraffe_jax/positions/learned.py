"""Learned or searched tables of frequencies, and how each becomes an ordinary config entry.

A learned table is the frequencies of a list of methods, times exp(log_ratio_i) in plane i: multiplicative, so that
frequencies stay positive and an optimizer step means the same in fast and slow planes. The config entry is `longrope`
with two equal lists, which transformers and vLLM read too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.positions.calls import Scaling, check
from giraffe_jax.positions.compose import bind, frequencies
from giraffe_jax.positions.encoding import Encoding

STILL = 1e30  # divisor for a plane of frequency 0; JSON has no infinity


def turned(encoding: Encoding, params: Mapping[str, Any]) -> Encoding:
    """Returns the encoding with its frequencies multiplied by the learned ratios of a parameter tree, if it has any.

    Call it after `Encoding.at`: the ratios apply after all methods, also those that wait for a length or a key.
    Frequencies of 0 stay 0.
    """
    if "positions" not in params:
        return encoding
    ratio_R = jnp.exp(params["positions"]["log_ratio"].astype(jnp.float32))
    return encoding.replace(inv_freq=encoding.inv_freq * ratio_R)


def longrope_entry(
    inv_freq: np.ndarray, gain: float, *, head_dim: int, theta: float, factor: float = 1.0
) -> dict[str, Any]:
    """Returns the config entry for a table of frequencies, as plain JSON data; `frequencies([entry])` is the table.

    Args:
      inv_freq: [head_dim / 2] radians per token.
      gain: multiplier of cos and sin.
      head_dim, theta: those of the model, whose plain RoPE frequencies the entry divides.
      factor: context extension factor; an export derives the model's length from it.
    """
    plain = np.float64(theta) ** (-2 * np.arange(head_dim // 2, dtype=np.float64) / head_dim)
    pairs = zip(plain, np.asarray(inv_freq, np.float64), strict=True)
    divisors = [float(th / x) if x > 0 else STILL for th, x in pairs]
    lists = dict(short_factor=divisors, long_factor=list(divisors))
    return dict(name="longrope", **lists, factor=float(factor), attention_factor=float(gain))


def learned_entries(
    scaling: Scaling, log_ratio: np.ndarray, *, head_dim: int, theta: float, original_len: int, num_layers: int
) -> list[dict[str, Any]]:
    """Returns the list of methods that is equivalent to `scaling` with learned ratios, as `turned` applies them.

    If the methods amount to one table of frequencies and a gain, it is one `longrope` entry, followed by the methods
    that act only while training. Otherwise (bands, dependence on length, layers that differ) it is the methods
    unchanged, followed by a `longrope` entry with divisors exp(-log_ratio).
    """
    model: dict[str, Any] = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    calls = [dict(call) for call in scaling]
    while_training = ["key" in call.needs for call in check(calls)]
    acting = [c for c, only in zip(calls, while_training, strict=True) if not only]
    drawn = [c for c, only in zip(calls, while_training, strict=True) if only]
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    if (table := one_table(acting, **model, num_layers=num_layers)) is not None:
        start, gain = table
        factor = largest_factor(acting)
        return [longrope_entry(start * ratio, gain, head_dim=head_dim, theta=theta, factor=factor), *drawn]
    divisors = (1 / ratio).tolist()
    return [*calls, dict(name="longrope", short_factor=divisors, long_factor=divisors, attention_factor=1.0)]


def one_table(
    scaling: Scaling, *, head_dim: int, theta: int | float, original_len: int | float, num_layers: int | None = None
) -> tuple[np.ndarray, float] | None:
    """Returns (inv_freq, gain) if methods change nothing else and do so equally in all layers and at all lengths.

    Otherwise None. The lengths tried are original_len, twice and a thousand times as much.
    """
    model: dict[str, Any] = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    plain = bind([], **model, length=original_len, num_layers=num_layers)
    tables = []
    for length in (original_len, 2 * original_len, 1000 * original_len):
        e = bind(scaling, **model, length=length, num_layers=num_layers)
        same = e.replace(inv_freq=plain.inv_freq, gain=plain.gain, theta=plain.theta)
        if jax.tree.structure(same) != jax.tree.structure(plain) or np.ndim(e.inv_freq) != 1:
            return None
        tables.append(frequencies(scaling, **model, length=length))
    inv_freq, gain = tables[0]
    alike = all(np.array_equal(other, inv_freq) and other_gain == gain for other, other_gain in tables)
    return (inv_freq, gain) if alike else None


def largest_factor(scaling: Sequence[Mapping[str, Any]]) -> float:
    """Returns the largest `factor` in a list of methods, defaults included; 1 if there is none."""
    factors = [(call.numbers | dict(call.choices)).get("factor") for call in check(scaling)]
    return max([1.0, *(float(factor) for factor in factors if factor)])


def reach(scaling: Sequence[Mapping[str, Any]], original_len: int) -> int | None:
    """Returns the context length in tokens that a list of methods is set for: original_len times the largest factor.

    None if the parameters do not tell: for methods without a factor (bands, biases, windows...), for length-dependent
    methods except longrope, and for llama3, whose models reach further than their factor.
    """
    calls = check(scaling)
    for call in calls:
        name = call.function.__name__
        if "factor" not in call.numbers or name == "llama3" or ("length" in call.needs and name != "longrope"):
            return None
    return int(original_len * largest_factor(scaling))
