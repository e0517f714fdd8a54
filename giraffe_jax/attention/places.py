"""Places: what attention knows of each token. Causal and document masks are made from it, never from array indices."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


class Place(NamedTuple):
    """Where tokens are, int32 [B T] each: a query sees the keys of its segment whose index is not above its own."""

    index: Any  # in the row
    segment: Any  # document
    start: Any  # index of the document's first token: bands and biases count from there

    @property
    def within(self) -> Any:
        """Index in the document."""
        return self.index - self.start


def place_of_rows(segments: Int[Array, "B T"] | None, shape: tuple[int, int]) -> Place:
    """Returns the place of every token of whole rows. Each run of equal segments is a document; None: one per row."""
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    if segments is None:
        return Place(index, jnp.ones_like(index), jnp.zeros_like(index))
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return Place(index, jnp.asarray(segments, jnp.int32), lax.cummax(jnp.where(first, index, 0), axis=1))
