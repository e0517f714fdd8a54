"""Times the model calls that tasks make, for estimates: each shape once per structure of the compiled program."""

import dataclasses
import time
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from giraffe_jax import inference
from giraffe_jax.inference import LM
from giraffe_jax.lab import spec
from giraffe_jax.lab.spec import Variant
from giraffe_jax.positions import Encoding

# Seconds. If a call takes longer than this with plain RoPE, other structures are not timed on it: their time is
# extrapolated with the ratio to plain RoPE at the longest call that was timed with both.
SLOW = 5.0


class Call(NamedTuple):
    """A model call on rows x tokens: scoring if `new_tokens` is 0, of `scored` tokens of each row or all (0), else
    generation of that many tokens."""

    rows: int
    tokens: int
    new_tokens: int = 0
    scored: int = 0


def structure(encoding: Encoding) -> Hashable:
    """Returns a key that is equal for encodings which share one compiled program."""
    leaves, tree = jax.tree.flatten(encoding)
    return tree, tuple(np.shape(leaf) for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Counted(LM):
    """Stands in for a model and records its calls without computing: every loss is 0, every continuation empty."""

    calls: list[Call] = dataclasses.field(default_factory=list)

    def score_rows(self, tokens, encoding: Any = None, segments: Any = None, scored: Any = None):
        """Records the call; returns losses of 0 and hits of False, each [B T-1]."""
        self.calls.append(Call(*tokens.shape, scored=0 if scored is None else scored.shape[1]))
        nothing = np.zeros((tokens.shape[0], tokens.shape[1] - 1), np.float32)
        return nothing, nothing > 0

    def generate_rows(self, prompts, n: int, *_: Any, batch: int | None = None, width: int | None = None, **__: Any):
        """Records the call; returns an empty continuation for each prompt."""
        longest = max(map(len, prompts), default=1)
        self.calls.append(Call(batch or len(prompts), max(longest, width or 0), n))
        return [[] for _ in prompts]


class _Clock:
    """Times calls: each shape once per program structure."""

    def __init__(self, lm: LM):
        self.lm, self.plain = lm, lm.config.bind(1.0)
        self.took: dict[tuple[Hashable, Call], float] = {}
        self.compiled: dict[tuple[Hashable, Call], float] = {}

    def bind(self, variant: Variant, length: int) -> Encoding:
        return self.lm.config.bind(length, scaling=spec.read_with(variant))

    def seconds(self, calls: Mapping[Call, int], encoding: Encoding) -> float:
        return sum(times * self._call(call, encoding) for call, times in calls.items())

    def _call(self, call: Call, encoding: Encoding) -> float:
        plain = self._timed(call, self.plain)
        if structure(encoding) == structure(self.plain) or plain <= SLOW:
            return self._timed(call, encoding)
        both = [
            (seconds, self.took[structure(encoding), other])
            for (kind, other), seconds in self.took.items()
            if kind == structure(self.plain)
            and (structure(encoding), other) in self.took
            and other.new_tokens == call.new_tokens
        ]
        if not both:
            return self._timed(call, encoding)
        alone, other = max(both)
        return plain * other / alone

    def _timed(self, call: Call, encoding: Encoding) -> float:
        key = (structure(encoding), call)
        if key not in self.took:
            seconds = []
            for _ in range(2):
                began = time.monotonic()
                self._run(call, encoding)
                seconds.append(time.monotonic() - began)
                if seconds[0] > 4 * SLOW:  # so slow that compilation hardly counts
                    break
            self.took[key], self.compiled[key] = seconds[-1], seconds[0] - seconds[-1]
        return self.took[key]

    def _run(self, call: Call, encoding: Encoding) -> None:
        tokens = np.arange(call.rows * call.tokens, dtype=np.int32).reshape(call.rows, call.tokens)
        tokens %= self.lm.config.vocab_size
        if call.new_tokens:
            settings: dict[str, Any] = dict(length=call.tokens, batch=call.rows, width=call.tokens, stop=())
            inference.generate(self.lm, tokens.tolist(), call.new_tokens, encoding, **settings)
        else:
            scored = None
            if call.scored:
                scored = np.broadcast_to(np.arange(call.tokens - call.scored, call.tokens), (call.rows, call.scored))
            jax.block_until_ready(inference.score(self.lm, tokens, encoding, np.ones_like(tokens), scored=scored))
