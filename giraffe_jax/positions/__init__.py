"""Positions: every context-extension method as a small pure function `Encoding -> Encoding`.

A method is a file of `positions/methods`; its name is its name in a config. Methods compose left to right:

    scaling = [dict(name="linear", factor=4.0), dict(name="power", exponent=0.5)]
    inv_freq, gain = frequencies(scaling, head_dim=128, theta=1e4, original_len=4096)
"""

import importlib
from collections.abc import Callable
from typing import Any

from giraffe_jax.config import Bound
from giraffe_jax.positions.calls import (
    Call,
    Divisors,
    Factor,
    Fraction,
    NonNegative,
    Positive,
    Scaling,
    check,
    lookup,
    names,
    scale_queries,
)
from giraffe_jax.positions.code import digest as code_digest
from giraffe_jax.positions.code import same, sources
from giraffe_jax.positions.compose import bind, frequencies, instead_of, length_dependent, needs_raw_keys
from giraffe_jax.positions.encoding import CAUSAL, Band, Encoding, Range
from giraffe_jax.positions.learned import largest_factor, learned_entries, longrope_entry, one_table, reach, turned
from giraffe_jax.positions.rotation import Rotation, rotate, rotations
from giraffe_jax.positions.slot import Learned, learn, scale_heads, with_learned

distances: Callable[..., Any]  # query-key distances as attention sees them, [Q T]: attention/distances.py


def __getattr__(name: str) -> Any:
    if name == "distances":  # imported late: it runs attention, which imports this package
        return importlib.import_module("giraffe_jax.attention.distances").distances
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CAUSAL",
    "Band",
    "Bound",
    "Call",
    "Divisors",
    "Encoding",
    "Factor",
    "Fraction",
    "Learned",
    "NonNegative",
    "Positive",
    "Range",
    "Rotation",
    "Scaling",
    "bind",
    "check",
    "code_digest",
    "distances",
    "frequencies",
    "instead_of",
    "largest_factor",
    "learn",
    "learned_entries",
    "length_dependent",
    "longrope_entry",
    "lookup",
    "names",
    "needs_raw_keys",
    "one_table",
    "reach",
    "rotate",
    "rotations",
    "same",
    "scale_heads",
    "scale_queries",
    "sources",
    "turned",
    "with_learned",
]
