"""Biases on logits, as functions of two indices: evaluated block by block, never as an array of all pairs.

A term is a frozen dataclass, called as `term(params, i, j, num_heads) -> [#B N T S]` on indices in the document. If it
has learned parameters, it also has a `name` and `init(key, num_heads)`, which returns those of one layer; `params` is
None for a term without parameters, or before they exist. A term that depends on i - j alone sets `by_distance = True`:
the GPU and TPU kernels read it from a table indexed by distance. Others are added block by block in plain JAX.
"""

import dataclasses
from typing import Any

import jax

from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.slot import learn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """A sum of terms, with the parameters of the learned ones by name; a pytree, so they get gradients."""

    terms: tuple[Any, ...] = dataclasses.field(metadata={"static": True})
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, i, j, num_heads: int):
        """Returns the bias [#B N T S] of query indices i [#B 1 T 1] and key indices j [#B 1 1 S]."""
        return sum(term(self.params.get(getattr(term, "name", "")), i, j, num_heads) for term in self.terms)

    @property
    def by_distance(self) -> bool:
        """Whether the bias of a pair depends on the distance alone."""
        return all(getattr(term, "by_distance", False) for term in self.terms)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LearnedTerm:
    """A bias term with learned parameters, as a `Learned` (positions/slot.py)."""

    term: Any

    @property
    def name(self) -> str:
        """The term's name, under which its parameters are stored."""
        return self.term.name

    def init(self, key, num_heads: int):
        """Returns the term's initial parameters in one layer."""
        return self.term.init(key, num_heads)

    def apply(self, e: Encoding, params: Any) -> Encoding:
        """Returns the encoding whose bias has these parameters of one layer."""
        return e.replace(bias=dataclasses.replace(e.bias, params=e.bias.params | {self.name: params}))


def add_bias(e: Encoding, term: Any) -> Encoding:
    """Returns the encoding with one more bias term.

    Raises:
      ValueError: the term is learned and its name is taken, for example because it was added before.
    """
    terms = () if e.bias is None else e.bias.terms
    e = e.replace(bias=Bias((*terms, term)))
    return learn(e, LearnedTerm(term)) if hasattr(term, "init") else e
