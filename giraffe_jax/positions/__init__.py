"""Positions: every context-extension method as a small pure function `Encoding -> Encoding`.

A method is a file of `positions/methods`; its name is its name in a config. Methods compose left to right:

    scaling = [dict(name="linear", factor=4.0), dict(name="power", exponent=0.5)]
    inv_freq, gain = frequencies(scaling, head_dim=128, theta=1e4, original_len=4096)
"""

from typing import Any

from giraffe_jax.positions.code import digest as code_digest
from giraffe_jax.positions.code import same, sources
from giraffe_jax.positions.compose import (
    Bound,
    Call,
    Divisors,
    Factor,
    Fraction,
    NonNegative,
    Positive,
    Scaling,
    bind,
    check,
    frequencies,
    instead_of,
    length_dependent,
    lookup,
    names,
    needs_raw_keys,
    scale_queries,
)
from giraffe_jax.positions.encoding import CAUSAL, Band, Encoding
from giraffe_jax.positions.learned import largest_factor, learned_entries, longrope_entry, one_table, reach, turned
from giraffe_jax.positions.rotation import Rotation, rotate, rotations


def distances(scaling: Scaling, *, length: int, head_dim: int, theta: float, original_len: int, queries=None):
    """Returns the effective query-key distance of each pair, [T, T]; see attention/distances.py, which measures it."""
    from giraffe_jax.attention.distances import distances as probe

    model: dict[str, Any] = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    return probe(scaling, length=length, queries=queries, **model)


__all__ = [
    "CAUSAL",
    "Band",
    "Bound",
    "Call",
    "Divisors",
    "Encoding",
    "Factor",
    "Fraction",
    "NonNegative",
    "Positive",
    "Rotation",
    "Scaling",
    "bind",
    "check",
    "code_digest",
    "distances",
    "frequencies",
    "instead_of",
    "largest_factor",
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
    "scale_queries",
    "sources",
    "turned",
]
