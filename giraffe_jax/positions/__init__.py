"""Positions: every context-extension method as a small pure function `Encoding -> Encoding`.

A method is a file of `positions/methods`; its name is its name in a config. Methods compose left to right:

    scaling = [dict(name="linear", factor=4.0), dict(name="power", exponent=0.5)]
    inv_freq, gain = frequencies(scaling, head_dim=128, theta=1e4, original_len=4096)
"""

from giraffe_jax.positions.compose import (
    Bound,
    Call,
    Divisors,
    Factor,
    NonNegative,
    Positive,
    Scaling,
    bind,
    check,
    frequencies,
    length_dependent,
    lookup,
    names,
)
from giraffe_jax.positions.encoding import CAUSAL, Band, Encoding
from giraffe_jax.positions.rotation import Rotation, rotate, rotations

__all__ = [
    "CAUSAL",
    "Band",
    "Bound",
    "Call",
    "Divisors",
    "Encoding",
    "Factor",
    "NonNegative",
    "Positive",
    "Rotation",
    "Scaling",
    "bind",
    "check",
    "frequencies",
    "length_dependent",
    "lookup",
    "names",
    "rotate",
    "rotations",
]
