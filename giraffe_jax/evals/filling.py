"""How prompts are filled: with units (sentences, lines, pairs, documents) until one more does not fit.

Tokenising a whole prompt for every try is what would take time. Tries are counted by their words, whose tokens are
counted once; only the one that is taken is tokenised, and those beside it where the count cannot tell.
"""

import dataclasses
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.evals import lengths, scoring
from giraffe_jax.evals.scoring import Example
from giraffe_jax.tokenizer import begun

UNSURE = 8  # tokens by which the count of one more unit may be wrong
WORDS = 2**18  # kept of a tokenizer
_WORD = re.compile(r"\s*\S{1,16}")
_counted: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


class Made(NamedTuple):
    """A prompt and the answer that follows it, as text; `expected` and `depth` as in `Example`."""

    prompt: str
    answer: str
    expected: int | tuple[str, ...]
    depth: float


class Filler:
    """Fills the prompts of one task and length; where one search ends the next one begins.

    Args:
      task: names itself in errors.
      tokenizer: of the model that is asked.
      length: tokens that prompt and answer may take.
      probe: units that the first search begins with; only the time depends on it.
      answer: tokens kept for an answer that takes fewer.
    """

    def __init__(self, task: Any, tokenizer: Any, length: int, *, probe: int = 16, answer: int = 0):
        self.task, self.tokenizer, self.length = task, tokenizer, length
        self._probe, self._kept, self._ratio = probe, answer, 1.0

    def __call__(
        self, make: Callable[[int], Made], *, most: int | None = None, probe: int | None = None, whole: bool = True
    ) -> tuple[int, Example]:
        """Returns (k, make(k) as tokens) with the largest k >= 0 that fits.

        Args:
          make: the prompt with k units; its tokens grow with k.
          most: the largest k there is; None where there is always more.
          probe: as in the class, of units that are none of the searches before.
          whole: a unit that does not fit any more is not cut: the prompt may be shorter by as much (`Example.slack`).

        Raises:
          ConfigError: not even k = 0 fits.
        """
        tried: dict[int, tuple[Made, int]] = {}

        def counted(k: int) -> tuple[Made, int]:
            if k not in tried:
                made = make(k)
                tried[k] = made, len(self.tokenizer.prefix) + count(self.tokenizer, made.prompt + made.answer)
            return tried[k]

        def guess(k: int) -> float:
            return counted(k)[1] * self._ratio

        best = example(self.tokenizer, make(0))
        if self._cost(best) > self.length:
            raise ConfigError(
                f"{self.task.label or self.task.name} at length {self.length:,}: {self.length:,} tokens are not "
                f"enough, the shortest prompt takes {self._cost(best):,}."
            )
        low, high = 0, None if most is None else most + 1
        k = self._probe if probe is None else probe
        while high is None or high - low > 1:
            k = max(low + 1, largest(guess, self.length, k, high))
            found = example(self.tokenizer, counted(k)[0])
            self._ratio *= self._cost(found) / max(1.0, guess(k))
            if self._cost(found) > self.length:
                high = k
                continue
            low, best = k, found
            if (high is None or low + 1 < high) and guess(low + 1) > self.length + UNSURE:
                high = low + 1
        self._probe = low if probe is None else self._probe
        slack = max(0, self._kept - len(best.answer))
        best = dataclasses.replace(best, slack=slack)
        if whole and low != most and lengths.short(best, self.length):
            slack += self._cost(example(self.tokenizer, counted(low + 1)[0])) - self._cost(best)
        return low, dataclasses.replace(best, slack=slack)

    def _cost(self, example: Example) -> int:
        return len(example.prompt) + max(len(example.answer), self._kept)


def example(tokenizer: Any, made: Made) -> Example:
    """Returns a prompt and its answer as tokens, after those that every text begins with."""
    before, answer = scoring.split(tokenizer, made.prompt, made.answer)
    return Example(begun(tokenizer, before), answer, made.expected, made.depth)


def largest(cost: Callable[[int], float], budget: float, k: int, high: int | None = None) -> int:
    """Returns the largest k >= 0 below `high` whose cost is within the budget, 0 where there is none.

    Args:
      cost: grows with k, about as a line does.
      budget: what may be taken.
      k: where to look first.
      high: one more than the largest k; None where there is always more.
    """
    low, least, tries = 0, cost(0), 0
    while high is None or high - low > 1:
        tries += 1
        if tries > 6:  # no line: double, or halve what is left
            k = 2 * low + 1 if high is None else (low + high) // 2
        k = max(k, low + 1) if high is None else min(max(k, low + 1), high - 1)
        taken = cost(k)
        if taken <= budget:
            low = k
        else:
            high = k
        k += int((budget - taken) * k / max(1e-9, taken - least)) - (taken > budget)
    return low


def count(tokenizer: Any, text: str) -> int:
    """Returns about as many tokens as a text has: those of its words."""
    known = _counted.setdefault(tokenizer, {})
    if len(known) > WORDS:
        known.clear()
    words = _WORD.findall(text)
    for word in set(words).difference(known):
        known[word] = len(tokenizer.encode(word))
    return sum(map(known.__getitem__, words))
