"""Biases on logits, as functions of two indices: evaluated block by block, never as an array of all pairs.

A term is a frozen dataclass `term(params, i, j, num_heads) -> [#B N T S]`; where it learns, `term.init(key, num_heads)`
returns its parameters, one set for each layer, which the model owns ("layers/attention/<term.name>/..." in the
parameter tree) and hands in by `with_params`. A term of i - j alone says `by_distance = True`: a GPU's kernel reads it
from a table of distances. Others are added block by block in plain JAX.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from giraffe_jax.positions.encoding import Encoding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """The sum of terms, with the parameters of each; a pytree, so gradients reach the parameters."""

    terms: tuple[Any, ...] = dataclasses.field(metadata={"static": True})
    params: tuple[Any, ...] = ()

    def __call__(self, i, j, num_heads: int):
        params = self.params or (None,) * len(self.terms)
        return sum(term(p, i, j, num_heads) for term, p in zip(self.terms, params, strict=True))

    @property
    def by_distance(self) -> bool:
        """Whether the bias of a pair depends on the distance alone."""
        return all(getattr(term, "by_distance", False) for term in self.terms)

    def with_params(self, make: Callable[[str, Callable], Any]) -> "Bias":
        """Returns the bias with the parameters of its learned terms: make(name, init) for each."""
        params = tuple(make(t.name, t.init) if hasattr(t, "init") else None for t in self.terms)
        return dataclasses.replace(self, params=params)


def add_bias(e: Encoding, term: Any) -> Encoding:
    """Returns the encoding with one more term on its logits.

    Raises:
      ValueError: a learned term that is there already.
    """
    terms = () if e.bias is None else e.bias.terms
    if hasattr(term, "init") and any(getattr(t, "name", None) == term.name for t in terms):
        raise ValueError(f"{term.name} is there already, and both would own the same parameters.")
    return e.replace(bias=Bias((*terms, term)))
