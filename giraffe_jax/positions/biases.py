"""Biases on logits, as functions of two indices: evaluated block by block, never as an array of all pairs.

A term is a frozen dataclass `term(params, i, j, num_heads) -> [#B N T S]`. One that learns also has a `name` and
`init(key, num_heads)`, its parameters in one layer; `params` is None where it has none, or none yet. A term of i - j
alone says `by_distance = True`: kernels of GPUs and TPUs read it from a table of distances. Others are added block
by block in plain JAX.
"""

import dataclasses
from typing import Any

import jax

from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.slot import learn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """The sum of terms, with the parameters of those that learn, by name; a pytree, so gradients reach them."""

    terms: tuple[Any, ...] = dataclasses.field(metadata={"static": True})
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, i, j, num_heads: int):
        return sum(term(self.params.get(getattr(term, "name", "")), i, j, num_heads) for term in self.terms)

    @property
    def by_distance(self) -> bool:
        """Whether the bias of a pair depends on the distance alone."""
        return all(getattr(term, "by_distance", False) for term in self.terms)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LearnedTerm:
    """A term of the bias that learns (positions/slot.py: Learned)."""

    term: Any

    @property
    def name(self) -> str:
        return self.term.name

    def init(self, key, num_heads: int):
        return self.term.init(key, num_heads)

    def apply(self, e: Encoding, params: Any) -> Encoding:
        return e.replace(bias=dataclasses.replace(e.bias, params=e.bias.params | {self.name: params}))


def add_bias(e: Encoding, term: Any) -> Encoding:
    """Returns the encoding with one more term on its logits.

    Raises:
      ValueError: a learned term that is there already, or whose name is taken.
    """
    terms = () if e.bias is None else e.bias.terms
    e = e.replace(bias=Bias((*terms, term)))
    return learn(e, LearnedTerm(term)) if hasattr(term, "init") else e
