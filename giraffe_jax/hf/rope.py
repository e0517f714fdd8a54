"""Positions as rope parameters of Hugging Face's config.json: a native rope_type if exact, else a longrope table."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError, to_dict
from giraffe_jax.model import ModelConfig, learned_by
from giraffe_jax.positions import check, instead_of, largest_factor, longrope_entry, one_table

_NATIVE = ("linear", "dynamic", "yarn", "llama3", "longrope")


def rope_in_words(values: Mapping[str, Any]) -> str:
    """Returns, for a message, how an exported config.json expresses positions, and to which length."""
    rope, length = values["rope_parameters"], values["max_position_embeddings"]
    kind = rope["rope_type"]
    if kind == "default":
        return f"positions as rope_theta {rope['rope_theta']:g}, to {length:,} tokens"
    if kind == "dynamic":
        return f"positions as rope_type dynamic, growing with the text beyond {length:,} tokens"
    table = kind == "longrope" and rope["short_factor"] == rope["long_factor"]
    return f"positions as {'a longrope table' if table else f'rope_type {kind}'}, to {length:,} tokens"


def _rope(config: ModelConfig) -> tuple[dict[str, Any], int]:
    """Returns (rope_parameters, the length they reach), for positions that Hugging Face's Llama computes exactly.

    Methods without a rope_type that are one table of frequencies and a gain are written as `longrope` with equal lists.
    """
    calls = _acting(config)
    theta, length = float(config.theta), config.original_len
    if not calls:
        return {"rope_type": "default", "rope_theta": theta}, length
    call = {k: v for k, v in calls[0].items() if v is not None}
    name = call.pop("name")
    if name == "abf" and len(calls) == 1:
        return {"rope_type": "default", "rope_theta": float(call["theta"])}, length
    if name == "ntk" and len(calls) == 1:
        factor = float(call["factor"])
        theta *= factor ** (config.head_dim / (config.head_dim - 2))
        return {"rope_type": "default", "rope_theta": theta}, int(length * factor)
    if name == "longrope":  # drops settings that transformers' longrope does not have
        call.pop("magnitude_policy", None)  # the gain is written as a number
        call = {k: v for k, v in call.items() if v or k not in ("start_tokens", "dynamic")}
    only_ours = {"start_tokens", "dynamic"} & call.keys() or np.ndim(call.get("short_factor", 0)) > 1
    if name not in _NATIVE or len(calls) > 1 or only_ours:
        return _table(config, calls)
    if name == "llama3":  # low_freq_factor and high_freq_factor have defaults here, but are required there
        call = check(calls)[0].numbers | call
    call = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in call.items()}
    rope = {"rope_type": name, "rope_theta": theta, **call}
    if name == "longrope":  # without it transformers derives a gain from max_position_embeddings
        rope["attention_factor"] = float(config.bind(length).gain)
    if name in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = length
        return rope, max(length, int(length * call.get("factor", 1.0)))
    return rope, length


def _table(config: ModelConfig, calls: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """Returns longrope parameters with the methods' frequencies as both lists, and the length they reach."""
    supported = (
        f"It supports ntk and abf (as rope_theta), {', '.join(_NATIVE)}, and every method that `giraffe methods` lists "
        "as longrope, composed or alone."
    )
    (inv_freq, gain), factor, theta = (
        static_table(config, "Hugging Face's Llama", supported),
        largest_factor(calls),
        float(config.theta),
    )
    entry = longrope_entry(inv_freq, gain, head_dim=config.head_dim, theta=theta, factor=factor)
    rope = {"rope_type": entry.pop("name"), "rope_theta": theta, **entry}
    rope["original_max_position_embeddings"] = config.original_len
    rope |= {"short_mscale": gain, "long_mscale": gain}  # vLLM reads the gain here
    return rope, reach_of(config)


def _acting(config: ModelConfig) -> list[dict[str, Any]]:
    """Returns the config's methods without those that act only in training."""
    calls = [dict(to_dict(p)) for p in config.positions]
    return [c for c, bound in zip(calls, check(config.positions), strict=True) if "key" not in bound.needs]


def reach_of(config: ModelConfig) -> int:
    """Returns how far the positions of a model reach, in tokens: original_len times the largest factor."""
    return int(config.original_len * largest_factor(_acting(config)))


def static_table(config: ModelConfig, whose: str, has: str) -> tuple[np.ndarray, float]:
    """Returns (inv_freq [R] in radians per token, gain) of positions that consist of these alone.

    Args:
      whose: the reader of the file, for the error.
      has: a sentence for the error about what that reader supports.

    Raises:
      ConfigError: positions that do more, as a bias, or frequencies that depend on layer or length.
    """
    calls = _acting(config)
    model: dict[str, Any] = dict(head_dim=config.head_dim, theta=config.theta, original_len=config.original_len)
    table = one_table(calls, **model, num_layers=config.num_layers)
    if table is None:
        listed, nearest = ", ".join(str(c["name"]) for c in calls), instead_of(calls)
        hint = f" Nearest to {nearest}." if nearest else ""
        if learned := learned_by(config):
            added = "; ".join(f"{method} ({', '.join(paths)})" for method, paths in learned.items())
            hint += (
                f" Learned parameters of a method, which such a file cannot hold: {added}. To export a model without "
                f"them, train from this one (source) with model.positions without {', '.join(learned)}."
            )
        raise ConfigError(
            f"model.positions: {listed} cannot be exported: {whose} supports only frequencies and a gain that are the "
            f"same in every layer and at every length. {has}{hint}"
        )
    return table


def _gain(config: ModelConfig) -> float:
    return float(config.bind(config.original_len).gain)
