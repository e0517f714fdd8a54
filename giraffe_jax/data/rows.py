"""Rows of one source, as an endless list: windows of texts, and of synthetic documents."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data.config import SyntheticConfig
from giraffe_jax.data.packing import Packing, Plan, empty_row, plan, window
from giraffe_jax.data.source import Tokens
from giraffe_jax.data.synthetic import piece_encoder, shortest_length, synthetic_document

ENDLESS = 1 << 40
Batch = dict[str, np.ndarray]


class TextRows:
    """The windows of a source's documents, epoch after epoch, shuffled anew in each.

    "concat" also shuffles the documents in each epoch before it joins them; "document" packs once for all epochs.
    """

    def __init__(self, tokens: Tokens, documents: np.ndarray, seq_len: int, how: Packing, seed: tuple[int, ...]):
        """documents: indices of an epoch's documents; an index that is repeated is read that often."""
        self.tokens, self.documents, self.seq_len, self.seed = tokens, documents, seq_len, seed
        self.how: Packing = how
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)
        self.num_windows = self._plan(0).num_windows  # the same in every epoch
        self.longest = int(tokens.sizes[documents].max())

    def row(self, index: int, step: int) -> Batch:
        """Returns row `index` of the endless list, arrays [seq_len]."""
        epoch, at = divmod(index, self.num_windows)
        plan_ = self._plan(epoch if self.how == "concat" else 0)
        return window(plan_, int(self._order(epoch)[at]), self.tokens.tokens, self.seq_len, self.tokens.answers)

    def describe(self, index: int) -> str:
        """Returns the documents that row `index` holds, in words."""
        epoch, at = divmod(index, self.num_windows)
        plan_, number = self._plan(epoch if self.how == "concat" else 0), int(self._order(epoch)[at])
        starts = plan_.start[slice(*plan_.first[number : number + 2])]
        documents = np.searchsorted(self.tokens.ends, starts, side="right")
        return self.tokens.describe(list(dict.fromkeys(documents.tolist())))

    def _make_plan(self, epoch: int) -> Plan:
        order = np.random.default_rng((*self.seed, epoch, 0)).permutation(len(self.documents))
        return plan(self.tokens.ends, self.documents[order], self.seq_len, self.how)

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch, 1)).permutation(self.num_windows)


class SyntheticRows:
    """Rows of synthetic documents, each with its own segment; row i depends only on the seed, i and its step."""

    def __init__(self, config: SyntheticConfig, tokenizer: Any, seq_len: int, seed: tuple[int, ...]):
        self.config, self.seq_len, self.seed = config, seq_len, seed
        try:
            self.encode = piece_encoder(tokenizer)
        except ValueError as e:
            raise ConfigError(f"data.sources: {e}") from e
        self.longest = max(config.lengths) if config.lengths else config.max_len or seq_len
        self.bos, self.eos = tokenizer.prefix, () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.weight_of = {"answer": config.answer_weight, "drawn": config.drawn_weight, "text": config.text_weight}
        need = max(shortest_length(kind, self.count) for kind in config.kinds) + len(self.bos + self.eos)
        key, least = ("lengths", min(config.lengths)) if config.lengths else ("min_len", config.min_len)
        if least < need:
            kinds = ", ".join(config.kinds)
            raise ConfigError(
                f"synthetic.{key}: got {least}; {kinds} documents take at least {need} tokens with this tokenizer"
            )

    def count(self, text: str) -> int:
        """Returns the number of tokens of a text."""
        return len(self.encode(text))

    def row(self, index: int, step: int) -> Batch:
        """Returns row `index` of the endless list, arrays [seq_len], for the batch of `step`."""
        rng = np.random.default_rng((*self.seed, index))
        row = empty_row(self.seq_len)
        for segment, (at, length) in enumerate(self._documents(rng, step), 1):
            self._fill(row, at, segment, rng, length)
        return row

    def describe(self, index: int) -> str:
        """Returns which row this is, in words."""
        return f"made row {index + 1}"

    def _documents(self, rng: np.random.Generator, step: int) -> Iterator[tuple[int, int]]:
        """Where each document of a row starts, and how many tokens it may take."""
        if self.config.lengths:
            # Drawn from the run's seed and the step alone, so that all rows and all sources of a batch agree.
            draw = np.random.default_rng((self.seed[0], step)).integers(len(self.config.lengths))
            length = self.config.lengths[int(draw)]
            yield from ((at, length) for at in range(0, self.seq_len - length + 1, length))
            return
        at, shortest = 0, self.config.min_len
        longest = self.config.max_len or self.seq_len
        while (room := self.seq_len - at) >= shortest:
            # Half of the documents have the maximum length: log-uniform lengths alone would rarely span the window.
            length = longest if rng.uniform() < 0.5 else shortest * (longest / shortest) ** rng.uniform()
            yield at, min(room, int(length))
            at += min(room, int(length))

    def _fill(self, row: Batch, at: int, segment: int, rng: np.random.Generator, length: int) -> None:
        kind = self.config.kinds[int(rng.integers(len(self.config.kinds)))]
        tokens: list[int] = [*self.bos]
        weights: list[float] = [0.0] * len(self.bos)
        for piece in synthetic_document(rng, kind, length - len(self.bos + self.eos), self.count):
            ids = self.encode(piece.text)
            tokens.extend(ids)
            weights.extend([self.weight_of[piece.role]] * len(ids))
        tokens.extend(self.eos)
        weights.extend([self.weight_of["text"]] * len(self.eos))
        n = len(tokens)
        row["tokens"][at : at + n] = tokens
        row["targets"][at : at + n - 1] = tokens[1:]
        row["weights"][at : at + n - 1] = weights[1:]
        row["positions"][at : at + n] = np.arange(n)
        row["segments"][at : at + n] = segment
