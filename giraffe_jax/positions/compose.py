"""From a config's list of methods to an Encoding: look up, check, compose left to right, round once.

Binding has two stages. Whatever is known before the step (frequencies, gain, and length where it is pinned) is
evaluated once on the host in float64 and rounded once to float32. What depends on positions, on a traced length or on
a key stays pending and runs inside the step, in float32, with its parameters as arguments of the compiled step.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.positions import own
from giraffe_jax.positions.calls import Call, Scaling, check
from giraffe_jax.positions.encoding import Encoding


def bind(
    scaling: Scaling | tuple[Call, ...],
    *,
    head_dim: int,
    theta: int | float,
    original_len: int | float,
    length: int | float | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    where: str = "model.positions",
) -> Encoding:
    """Returns the Encoding of composed methods, without positions: float32 numpy arrays, ready to be step arguments.

    Args:
      scaling: the config's list of dicts, or its checked calls.
      head_dim: width of a head; there are head_dim / 2 rotary planes.
      theta: RoPE base.
      original_len: pretraining context, tokens.
      length: sequence length in tokens where it is known (policy `pinned`); None leaves length-dependent methods, and
        what follows them, to the step.
      num_layers: layers of the model, for methods that treat them differently.
      num_heads: query heads of the model; if given, the shapes of what user-defined methods learn are checked.
      where: the list's name in errors: its config key.

    Raises:
      ConfigError: head_dim is odd, or a method is unknown, has wrong parameters or cannot follow those before it.
    """
    e = _bind64(scaling, head_dim, theta, original_len, length, where, num_layers, num_heads)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), e)


def _bind64(
    scaling,
    head_dim: int,
    theta: int | float,
    original_len: int | float,
    length: int | float | None,
    where: str,
    num_layers: int | None = None,
    num_heads: int | None = None,
) -> Encoding:
    """Returns what `bind` does before rounding: float64, pending calls included."""
    calls = scaling if scaling and all(isinstance(c, Call) for c in scaling) else check(scaling, where)
    if head_dim < 2 or head_dim % 2:
        raise ConfigError(f"head_dim must be even and at least 2, got {head_dim}.")
    planes = np.arange(head_dim // 2, dtype=np.float64)
    e = Encoding(
        inv_freq=np.float64(theta) ** (-2 * planes / head_dim),
        gain=np.float64(1.0),
        theta=np.float64(theta),
        original_len=np.float64(original_len),
        length=None if length is None else np.float64(length),
        num_layers=num_layers,
        num_heads=num_heads,
    )
    _check_kinds(calls, where)
    pending: list[tuple[int, Call]] = []
    for i, call in enumerate(calls):
        waits_for_length = "length" in call.needs and length is None
        # Methods of bands do not change frequencies: they need not wait for a pending method, nor others for them.
        follows_one = _kind(call) != "bands" and any("length" in p.needs and _kind(p) != "bands" for _, p in pending)
        if waits_for_length or follows_one or "positions" in call.needs or "key" in call.needs:
            pending.append((i, call))
        else:
            e = apply(e, [call], where, i)
    if e.limits is not None and length is not None:
        e = e.choose(int(np.sum(length > e.limits)))
    if pending:
        jax.eval_shape(functools.partial(_run_pending, e, pending, where))
        if any(own.is_own(call.function) for _, call in pending):
            _run_pending(e, pending, where)  # with real numbers, to find results that are not finite
    return e.replace(pending=tuple(call for _, call in pending))


_ONCE = {
    "training": "how positions are drawn anew while training",
    "length": "how frequencies follow the length",
    "bands": "which distances are seen",
}
_TABLES = {"longrope"}  # may follow any method: learned and searched divisors apply to the frequencies that are there


def _about(call: Call, key: str) -> str | None:
    """Returns an entry of the ABOUT dict of a method's file, or None."""
    return getattr(sys.modules.get(call.function.__module__), "ABOUT", {}).get(key)


def _kind(call: Call) -> str | None:
    return _about(call, "kind")


def instead_of(scaling: Scaling) -> str:
    """Returns the closest substitutes for methods that other software lacks, in words: "logn: scale"."""
    return ". ".join(
        f"{call.function.__name__}: {text}" for call in check(scaling) if (text := _about(call, "instead"))
    )


def _check_kinds(calls: Sequence[Call], where: str) -> None:
    """Raises ConfigError if two methods are of a kind of which a list may have only one."""
    seen: dict[str, str] = {}
    for i, call in enumerate(calls):
        name = own.label(call.function)
        kind = _kind(call)
        if kind in _ONCE and kind in seen and name not in _TABLES:
            raise ConfigError(f"{where}[{i}] ({name}): {seen[kind]} already says {_ONCE[kind]}; only one may.")
        if kind:
            seen.setdefault(kind, name)


def apply(e: Encoding, calls: Sequence[Call], where: str, first: int = 0) -> Encoding:
    """Returns the encoding after these calls.

    Raises:
      ConfigError: a method rejects the encoding or its parameters; names the method, counted from `first`.
    """
    for i, call in enumerate(calls, first):
        at = f"{where}[{i}] ({own.label(call.function)})"
        if own.is_own(call.function):
            # Even if the length is known here, in other calls it is not: a method sees it only if NEEDS declares it.
            length = e.length
            seen = e if "length" in call.needs or e.xp is not np else e.replace(length=None)
            e = own.call(call.function, seen, call.numbers | dict(call.choices), at).replace(length=length)
            continue
        try:
            e = call(e)
        except ConfigError as error:  # of a method nested in its parameters, as in `mixed`
            raise ConfigError(f"{at}.{error}") from error
        except ValueError as error:
            raise ConfigError(f"{at}: {error}") from error
    return e


def _run_pending(e: Encoding, pending: Sequence[tuple[int, Call]], where: str) -> Any:
    """Runs the pending calls as a step will, with a scalar length and with one per token, so that a method's errors
    appear when the config is built."""
    positions = jnp.arange(2.0)[None]
    e = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), e)
    per_token = e if e.limits is None else e.choose(0)
    for start, length in ((e, jnp.float32(2)), (per_token, jnp.full((1, 2, 1), 2.0))):
        if length.ndim and start.inv_freq.ndim == 2:
            start = start.replace(inv_freq=start.inv_freq[:, None, None])
        result = start.replace(positions=positions, length=length, key=jax.random.key(0))
        for i, call in pending:
            result = apply(result, [call], where, i)
    return result.inv_freq


def frequencies(
    scaling: Scaling, *, head_dim: int, theta: int | float, original_len: int | float,
    length: int | float | None = None, where: str = "positions",
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Returns (inv_freq, gain): float32 [head_dim / 2] radians per token, and the multiplier of cos and sin.

    Args:
      scaling: list of dicts like dict(name="yarn", factor=4.0), applied left to right.
      head_dim: width of a head.
      theta: RoPE base.
      original_len: pretraining context, tokens.
      length: sequence length in tokens for length-dependent methods; by default original_len.
      where: the list's name in errors: its config key.

    Raises:
      ConfigError: as in `bind`.
    """
    length = original_len if length is None else length
    e = _bind64(scaling, head_dim, theta, original_len, length, where)
    return np.asarray(e.inv_freq, np.float32), float(e.gain)


def length_dependent(encoding: Encoding) -> bool:
    """Returns whether the encoding was bound without a length and changes with the length."""
    waits = any("length" in call.needs for call in encoding.pending)
    return (waits or encoding.limits is not None) and encoding.length is None


def needs_raw_keys(encoding: Encoding) -> bool:
    """Returns whether a KV cache must hold unrotated keys: because bands rotate the same key differently, or because
    its rotation depends on a length that is not pinned."""
    if length_dependent(encoding):
        return True
    if encoding.pending:  # they may add bands, whose structure is known without computing anything
        encoding = jax.eval_shape(lambda: encoding.at(jnp.zeros((1, 1)), length=1.0))
    return any(x is not None for b in encoding.bands for x in (b.k_pos, b.inv_freq, b.gain))
