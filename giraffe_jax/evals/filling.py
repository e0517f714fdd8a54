"""Fills prompts with units (sentences, lines, pairs, documents) until one more does not fit.

Tokenising the whole prompt for every attempt would be slow. So the length of an attempt is estimated from the token
counts of its words, which are cached; only the best attempt is tokenised, and its neighbours if the estimate is too
close to decide.
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

UNSURE = 8  # tokens by which the estimate for one more unit may be wrong
WORDS = 2**18  # most words whose token counts are cached per tokenizer
_WORD = re.compile(r"\s*\S{1,16}")
_counted: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


class Made(NamedTuple):
    """A prompt and the answer that follows it, as text; `expected` and `depth` are those of `Example`."""

    prompt: str
    answer: str
    expected: int | tuple[str, ...]
    depth: float


class Filler:
    """Fills the prompts of one task and length; each search starts from the result of the last one.

    Args:
      task: named in errors.
      tokenizer: of the evaluated model.
      length: most tokens of prompt and answer together.
      probe: number of units with which the first search starts; affects only the time.
      answer: least number of tokens reserved for the answer.
    """

    def __init__(self, task: Any, tokenizer: Any, length: int, *, probe: int = 16, answer: int = 0):
        self.task, self.tokenizer, self.length = task, tokenizer, length
        self._probe, self._reserved, self._ratio = probe, answer, 1.0

    def __call__(
        self, make: Callable[[int], Made], *, most: int | None = None, probe: int | None = None, atomic: bool = True
    ) -> tuple[int, Example]:
        """Returns (k, make(k) as tokens) with the largest k >= 0 that fits.

        Args:
          make: returns the prompt with k units; its length must grow with k.
          most: the largest possible k; None if there is no limit.
          probe: as in the class, for units of another kind than in earlier searches.
          atomic: units cannot be cut, so the prompt may be shorter by the size of one (`Example.slack`).

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
            candidate = example(self.tokenizer, counted(k)[0])
            self._ratio *= self._cost(candidate) / max(1.0, guess(k))
            if self._cost(candidate) > self.length:
                high = k
                continue
            low, best = k, candidate
            if (high is None or low + 1 < high) and guess(low + 1) > self.length + UNSURE:
                high = low + 1
        self._probe = low if probe is None else self._probe
        slack = max(0, self._reserved - len(best.answer))
        best = dataclasses.replace(best, slack=slack)
        if atomic and low != most and lengths.short(best, self.length):
            slack += self._cost(example(self.tokenizer, counted(low + 1)[0])) - self._cost(best)
        return low, dataclasses.replace(best, slack=slack)

    def _cost(self, example: Example) -> int:
        return len(example.prompt) + max(len(example.answer), self._reserved)


def example(tokenizer: Any, text: Made) -> Example:
    """Returns a prompt and its answer as tokens, with the tokenizer's prefix (begin token) first."""
    before, answer = scoring.split(tokenizer, text.prompt, text.answer)
    return Example(begun(tokenizer, before), answer, text.expected, text.depth)


def largest(cost: Callable[[int], float], budget: float, k: int, high: int | None = None) -> int:
    """Returns the largest k >= 0 below `high` whose cost is within the budget, 0 if there is none.

    Args:
      cost: an increasing, roughly linear function of k.
      budget: the largest allowed cost.
      k: first guess.
      high: one more than the largest possible k; None if there is no limit.
    """
    low, least, tries = 0, cost(0), 0
    while high is None or high - low > 1:
        tries += 1
        if tries > 6:  # not linear: double, or bisect
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
    """Returns an estimate of a text's number of tokens: the sum over its words."""
    known = _counted.setdefault(tokenizer, {})
    if len(known) > WORDS:
        known.clear()
    words = _WORD.findall(text)
    for word in set(words).difference(known):
        known[word] = len(tokenizer.encode(word))
    return sum(map(known.__getitem__, words))
