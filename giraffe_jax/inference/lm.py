"""A language model as people use it: score a text, continue a prompt.

lm = giraffe_jax.load("giraffe-mini")
lm.score("line apple 17")  # nll of each token
lm.generate("line apple 17\\nask apple", 4)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from giraffe_jax.config import ConfigError
from giraffe_jax.inference import generation, scoring
from giraffe_jax.inference.generation import Policy, _bucket, _pad
from giraffe_jax.inference.scoring import Tokens
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import Encoding, Scaling
from giraffe_jax.tokenizer import begun


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a text: `tokens` int [T], its ids; `nll` and `likeliest` [T - 1], of every token but the first."""

    tokens: np.ndarray
    nll: np.ndarray  # float32, nats
    likeliest: np.ndarray  # bool, whether it is the most likely token

    @property
    def perplexity(self) -> float:
        """exp of the mean nll."""
        return float(np.exp(np.mean(self.nll, dtype=np.float64)))


@dataclasses.dataclass(frozen=True)
class LM:
    """A model's config, parameters and tokenizer: what `load` returns, and training, evaluation and export take."""

    config: ModelConfig
    params: Any
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with the begin token in front if the model's texts begin with it."""
        return list(begun(self.tokenizer, self.tokenizer.encode(text)))

    def score(self, text: str | Sequence[int], positions: Scaling | None = None) -> Scores:
        """Returns the loss of every token of a text, or of ids; `positions` replaces the model's position methods.

        Raises:
          ConfigError: fewer than two tokens, ids outside the vocabulary, or wrong positions.
        """
        tokens = self._ids(text, least=2)
        padded, _ = _pad([tokens], 1, _bucket(len(tokens)))
        segments = (np.arange(padded.shape[1]) < len(tokens))[None].astype(np.int32)
        encoding = self.config.bind(float(len(tokens)), scaling=positions)
        nll, likeliest = scoring.score(self, padded, encoding, segments)
        inside = slice(len(tokens) - 1)
        return Scores(np.asarray(tokens), np.asarray(nll)[0, inside], np.asarray(likeliest)[0, inside])

    def generate(
        self,
        prompt: str | Sequence[int],
        n: int = 64,
        positions: Scaling | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        policy: Policy = "pinned",
    ) -> str:
        """Returns the text of up to `n` tokens that continue a prompt, a text or ids.

        Args:
          positions: replaces the model's position methods.
          temperature: of sampling, by `seed`; 0 takes the likeliest token.
          policy: which length methods read while text grows; see the docstring of inference/generation.py.

        Raises:
          ConfigError: an empty prompt, ids outside the vocabulary, or wrong positions.
        """
        tokens = self._ids(prompt, least=1)
        encoding = self.config.bind(scaling=positions)
        settings: dict[str, Any] = dict(policy=policy, temperature=temperature, key=jax.random.key(seed))
        (new,) = generation.generate(self, [tokens], n, encoding, **settings)
        return self.tokenizer.decode(new)

    def score_rows(
        self,
        tokens: Tokens,
        encoding: Encoding | None = None,
        segments: Tokens | None = None,
        scored: Int[Array | np.ndarray, "B M"] | None = None,
    ) -> Any:
        """Returns what `inference.score` does, for rows of ids: the method that evaluation calls."""
        return scoring.score(self, tokens, encoding, segments, scored=scored)

    def generate_rows(self, prompts: Sequence[Sequence[int]], n: int, encoding: Encoding, **settings: Any) -> Any:
        """Returns what `inference.generate` does, for rows of ids: the method that evaluation calls."""
        return generation.generate(self, prompts, n, encoding, **settings)

    def _ids(self, text: str | Sequence[int], least: int) -> list[int]:
        tokens = self.encode(text) if isinstance(text, str) else [int(token) for token in text]
        if len(tokens) < least:
            raise ConfigError(f"tokens: {str(text)[:40]!r} has {len(tokens)}, at least {least} must be given.")
        if any(not 0 <= t < self.config.vocab_size for t in tokens):
            raise ConfigError(f"tokens: ids are 0 to {self.config.vocab_size - 1}, got {min(tokens)} to {max(tokens)}.")
        return tokens
