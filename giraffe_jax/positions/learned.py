"""Tables of frequencies that were learned or searched, and how each becomes an ordinary entry of a config.

A learned table is what a list of methods gives, times exp(log_ratio_i) in plane i: multiplicative, so that frequencies
stay positive and a step of the optimizer means the same in a fast plane and in a slow one. The entry is `longrope` with
two equal lists, which every reader of configs here, transformers and vLLM have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.positions.calls import Scaling, check
from giraffe_jax.positions.compose import bind, frequencies
from giraffe_jax.positions.encoding import Encoding

STILL = 1e30  # divides the frequency of a plane that does not turn; infinity is not JSON


def turned(encoding: Encoding, params: Mapping[str, Any]) -> Encoding:
    """Returns the encoding with the learned ratios of a parameter tree, if it has them, multiplied in.

    They come after every method, those that wait for length or key too: `encoding` has its positions. A plane that does
    not turn stays so.
    """
    if "positions" not in params:
        return encoding
    ratio_R = jnp.exp(params["positions"]["log_ratio"].astype(jnp.float32))
    return encoding.replace(inv_freq=encoding.inv_freq * ratio_R)


def longrope_entry(
    inv_freq: np.ndarray, gain: float, *, head_dim: int, theta: float, factor: float = 1.0
) -> dict[str, Any]:
    """Returns the config's entry for a table of frequencies, as plain JSON data; `frequencies([entry])` is the table.

    Args:
      inv_freq: [head_dim / 2] radians per token.
      gain: multiplier of cos and sin.
      head_dim, theta: of the model, whose plain frequencies the entry divides.
      factor: extension of the context, which exporting derives the length of the model from.
    """
    plain = np.float64(theta) ** (-2 * np.arange(head_dim // 2, dtype=np.float64) / head_dim)
    pairs = zip(plain, np.asarray(inv_freq, np.float64), strict=True)
    divisors = [float(th / x) if x > 0 else STILL for th, x in pairs]
    lists = dict(short_factor=divisors, long_factor=list(divisors))
    return dict(name="longrope", **lists, factor=float(factor), attention_factor=float(gain))


def learned_entries(
    scaling: Scaling, log_ratio: np.ndarray, *, head_dim: int, theta: float, original_len: int, num_layers: int
) -> list[dict[str, Any]]:
    """Returns the config's list of methods that gives what `turned` makes of `scaling`.

    One `longrope` entry where the methods come down to a table of frequencies and a gain, followed by those that only
    act while training. Otherwise (bands, dependence on length, layers that differ) the methods as they were, with an
    entry after them that divides by exp(-log_ratio).
    """
    model: dict[str, Any] = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    calls = [dict(call) for call in scaling]
    while_training = ["key" in call.needs for call in check(calls)]
    acting = [c for c, only in zip(calls, while_training, strict=True) if not only]
    drawn = [c for c, only in zip(calls, while_training, strict=True) if only]
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    if (found := one_table(acting, **model, num_layers=num_layers)) is not None:
        start, gain = found
        factor = largest_factor(acting)
        return [longrope_entry(start * ratio, gain, head_dim=head_dim, theta=theta, factor=factor), *drawn]
    divisors = (1 / ratio).tolist()
    return [*calls, dict(name="longrope", short_factor=divisors, long_factor=divisors, attention_factor=1.0)]


def one_table(
    scaling: Scaling, *, head_dim: int, theta: int | float, original_len: int | float, num_layers: int | None = None
) -> tuple[np.ndarray, float] | None:
    """Returns (inv_freq, gain) where methods change nothing else, alike in all layers and at all lengths, else None.

    All lengths are original_len, twice and a thousand times as much.
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
    """Returns the largest factor that a list of methods has, given or by default, 1 where none does."""
    factors = [(call.numbers | dict(call.choices)).get("factor") for call in check(scaling)]
    return max([1.0, *(float(factor) for factor in factors if factor)])


def reach(scaling: Sequence[Mapping[str, Any]], original_len: int) -> int | None:
    """Returns how many tokens a list of methods is made for: original_len, times the largest factor.

    None where no number says it: methods without a factor (bands, biases, windows...), those that follow the length
    (longrope's factor holds all the same), and llama3, whose models reach further than their factor.
    """
    calls = check(scaling)
    for call in calls:
        name = call.function.__name__
        if "factor" not in call.numbers or name == "llama3" or ("length" in call.needs and name != "longrope"):
            return None
    return int(original_len * largest_factor(scaling))
