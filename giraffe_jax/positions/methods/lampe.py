"""LaMPE: true distances nearby and at the far end, and between them as much resolution as the length calls for.

Zhang et al., "LaMPE: Length-aware Multi-grained Positional Encoding for Adaptive Long-context Scaling Without
Training", arXiv:2508.02308; scar-on/LaMPE, llama_cache1.py (read). The paper rounds the middle's distance down, which
no rotation of queries and keys gives; as in the released code each side is rounded down, so that some distances are one
token more than the paper's. Regions meet as in the paper (the released ones overlap by a token), and the released
multiplier of cos and sin, 0.1 ln(2) + 1, is left to `scale`.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from giraffe_jax.positions.bands import SAME, Apart, window_of, with_bands
from giraffe_jax.positions.compose import Bound
from giraffe_jax.positions.encoding import Band, Encoding

EXAMPLE = dict(a=0.05, b=-1.0, head=6, tail=4)
IDENTITY = "short"
ABOUT = dict(kind="bands", training_free=True, export="custom", cache="raw", test="bands")


def lampe(
    e: Encoding,
    *,
    a: Annotated[float, Bound(0.0)],
    b: Annotated[float, Bound(-1000.0)],
    longest: Annotated[int, Bound(1)] | None = None,
    head: Annotated[int, Bound(1)] | None = None,
    tail: Annotated[int, Bound(0)] = 200,
) -> Encoding:
    """D where D <= head; m - length + D where D >= length - tail; between, both ends' line, in whole tokens:
    floor(r (i - head)) + head - floor(r j), r = (m - head - tail) / (length - head - tail).

    The mapped length m is longest / (1 + exp(-(a length + b))) to the nearest token, at least head + tail and at most
    the length itself, where all distances are true.

    Args:
      a, b: fitted to a model's perplexity at a few lengths; released are (8.673e-5, -0.648) with longest 2489 for
        Llama 2, (1.0493e-4, -2.4666) with longest 6204 for Llama 3 (m is 1536 there below 8,192 tokens, which this
        leaves out), and (4.505e-5, -2.7886) with longest 82358 for Llama 3.1.
      longest: tokens; 3/4 of original_len by default.
      head: tokens; 1/16 of original_len by default.
      tail: tokens.
    """
    head = window_of(e, head, 1 / 16)
    span = Span(head, tail, window_of(e, longest, 3 / 4), float(a), float(b))
    return with_bands(
        e,
        Band(Apart(0, head + 1), SAME, SAME),
        Band(Middle(span), MiddleQuery(span), MiddleKey(span), by_length=True),
        Band(Tail(span), TailQuery(span), SAME, by_length=True),
    )


@dataclasses.dataclass(frozen=True)
class Span:
    """How a sequence of some length is mapped to fewer positions."""

    head: int
    tail: int
    longest: int
    a: float
    b: float

    def mapped(self, length: Any) -> Any:
        """Returns m of a length, tokens."""
        m = jnp.round(self.longest * jax.nn.sigmoid(self.a * length + self.b))
        return jnp.minimum(jnp.maximum(m, self.head + self.tail), length)

    def shrunk(self, positions: Any, length: Any) -> Any:
        """Returns floor(r * position), exactly: float32 alone would be off by one where that is nearly whole."""
        ends = self.head + self.tail
        below = jnp.maximum(length - ends, 1).astype(jnp.int32)
        above = jnp.maximum(self.mapped(length) - ends, 0).astype(jnp.int32)
        above, p = jnp.where(length > ends, above, below), jnp.floor(positions).astype(jnp.int32)
        guess = jnp.floor(p.astype(jnp.float32) * (above / below)).astype(jnp.int32)
        # The products may exceed 32 bits; their difference is small, and exact all the same.
        return (guess + (p * above - guess * below) // below).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Middle:
    span: Span

    def __call__(self, i, j, length):
        return (i - j > self.span.head) & (i - j < length - self.span.tail)

    def blocks(self, i, j, length):
        near, far, last = i[0] - j[1], i[1] - j[0], length - self.span.tail
        return (far > self.span.head) & (near < last), (near > self.span.head) & (far < last)


@dataclasses.dataclass(frozen=True)
class Tail:
    span: Span

    def __call__(self, i, j, length):
        return (i - j > self.span.head) & (i - j >= length - self.span.tail)

    def blocks(self, i, j, length):
        near, far, first = i[0] - j[1], i[1] - j[0], length - self.span.tail
        return (far > self.span.head) & (far >= first), (near > self.span.head) & (near >= first)


@dataclasses.dataclass(frozen=True)
class MiddleQuery:
    span: Span

    def __call__(self, positions: Any, length: Any) -> Any:
        return self.span.shrunk(positions - self.span.head, length) + self.span.head


@dataclasses.dataclass(frozen=True)
class MiddleKey:
    span: Span

    def __call__(self, positions: Any, length: Any) -> Any:
        return self.span.shrunk(positions, length)


@dataclasses.dataclass(frozen=True)
class TailQuery:
    span: Span

    def __call__(self, positions: Any, length: Any) -> Any:
        return positions + self.span.mapped(length) - length
