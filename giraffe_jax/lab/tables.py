"""Tables of divisors that a search tries: the first ones, mutations, crossovers, and the entry that each makes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float

from giraffe_jax.config import Bound, ConfigError, check_fields
from giraffe_jax.data.config import DataConfig
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import check, frequencies
from giraffe_jax.sharding import MeshConfig

TRIES = 20  # at a child that is new and monotone, before one that is only monotone is taken

Count = Annotated[int, Bound(1, high=2**16)]  # of what is in memory at once
Table = tuple[int, ...]  # steps above a divisor of 1, one number per plane


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """One search. The defaults are those of LongRoPE's released code for Llama."""

    source: str  # weights: see TrainConfig.source
    factor: Annotated[float, Bound(1.0, above=True, high=1e6)]  # extension of the context that is searched for
    data: DataConfig  # documents of the objective; needles: synthetic, with drawn_weight and text_weight 0
    batches: Count = 1  # of data that each table is measured on, the same for all
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what differs from the source's ModelConfig
    tokenizer: str = ""  # path; "" takes the source's
    starts: tuple[tuple[Mapping[str, Any], ...], ...] = ()  # lists of methods; () is linear, ntk and yarn with `factor`
    # Of all tables; None is LongRoPE's sqrt(1 + ln(factor) / ln(original_len)).
    gain: Annotated[float, Bound(0.0, above=True)] | None = None
    generations: Annotated[int, Bound(0)] = 40  # after the first population; may be raised in a workdir that is done
    population: Count = 64  # first one
    parents: Annotated[int, Bound(2)] = 32
    mutations: Annotated[int, Bound(0, high=2**16)] = 16
    crossovers: Annotated[int, Bound(0, high=2**16)] = 16
    # That a plane mutates, or is taken from the second parent.
    probability: Annotated[float, Bound(0.0, above=True, high=1.0)] = 0.3
    step: Annotated[float, Bound(1e-9)] = 0.01  # of the grid that divisors lie on, in nine digits
    tables_at_once: Count = 1  # of a generation in one forward pass: more where memory is left and matrices are small
    loss_chunk: Annotated[int, Bound(1)] = 1024  # tokens of a row whose logits exist at once
    mesh: MeshConfig = MeshConfig()
    seed: Annotated[int, Bound(0)] = 0

    def __post_init__(self):
        check_fields(self, "config")
        if self.parents > self.population or self.children < 1:
            raise ConfigError(
                "config: 2 <= parents <= population, and mutations or crossovers of them; got "
                f"{self.parents}, {self.population}, {self.mutations}, {self.crossovers}."
            )
        for i, start in enumerate(self.starts):
            check(start, f"config.starts[{i}]")
        if "positions" in self.model:
            raise ConfigError("config.model.positions: are what is searched; `starts` lists where from.")

    @property
    def children(self) -> int:
        return self.mutations + self.crossovers

    @property
    def top(self) -> int:
        """Steps of the largest divisor, 1.25 times the factor."""
        return math.floor((1.25 * self.factor - 1) / self.step + 1e-9)


def first(rng: np.random.Generator, config: SearchConfig, model: ModelConfig) -> list[Table]:
    """Returns the first population: the starts on the grid, then their mutations in turn."""
    default = tuple((dict(name=name, factor=config.factor),) for name in ("linear", "ntk", "yarn"))
    about: dict[str, Any] = dict(head_dim=model.head_dim, theta=model.theta, original_len=model.original_len)
    tables: dict[Table, None] = {}
    for i, start in enumerate(config.starts or default):
        inv_freq = np.asarray(frequencies(start, **about, where=f"config.starts[{i}]")[0], np.float64)
        divisor = plain(model) / np.maximum(inv_freq, 1e-30)
        steps = np.clip(np.rint((divisor - 1) / config.step), 0, config.top).astype(int)
        tables[tuple(np.maximum.accumulate(steps).tolist())] = None
    starts = list(tables)
    for i in range(config.population - len(starts)):
        tables[mutation(rng, starts[i % len(starts)], tables, config)] = None
    return list(tables)[: config.population]


def offspring(
    rng: np.random.Generator, parents: Sequence[Table], seen: Mapping[Table, Any], config: SearchConfig
) -> list[Table]:
    """Returns the children of a generation: mutations of parents drawn at random, then crossovers of two."""
    children: dict[Table, None] = {}
    known = dict.fromkeys(seen)
    for i in range(config.children):
        if i < config.mutations or len(parents) < 2:
            child = mutation(rng, parents[int(rng.integers(len(parents)))], known, config)
        else:
            one, two = sorted(rng.choice(len(parents), 2, replace=False))
            child = crossover(rng, parents[one], parents[two], known, config)
        children[child] = known[child] = None
    return list(children)


def mutation(rng: np.random.Generator, table: Table, seen: Mapping[Table, Any], config: SearchConfig) -> Table:
    """Returns the table with each plane drawn anew with the config's probability, between its two neighbours."""
    child = table
    for _ in range(TRIES):
        new = list(table)
        for i in range(len(new)):
            if rng.uniform() < config.probability:
                low = new[i - 1] if i else 0
                high = new[i + 1] if i + 1 < len(new) else config.top
                new[i] = int(rng.integers(low, high + 1))
        child = tuple(new)
        if child not in seen:
            break
    return child


def crossover(
    rng: np.random.Generator, table: Table, other: Table, seen: Mapping[Table, Any], config: SearchConfig
) -> Table:
    """Returns the table with each plane taken from another with the config's probability, where that is monotone and
    new; a mutation of it where no try is."""
    for _ in range(TRIES):
        take = rng.uniform(size=len(table)) < config.probability
        child = tuple(np.where(take, other, table).tolist())
        if child not in seen and all(a <= b for a, b in zip(child, child[1:], strict=False)):
            return child
    return mutation(rng, table, seen, config)


def divisors(table: Table, config: SearchConfig) -> Float[np.ndarray, "R"]:
    """Returns a table's divisors."""
    return np.round(1 + config.step * np.asarray(table, np.float64), 9)


def plain(model: ModelConfig) -> Float[np.ndarray, "R"]:
    """Returns the frequencies that divisors divide, in float64."""
    return np.float64(model.theta) ** (-2 * np.arange(model.head_dim // 2, dtype=np.float64) / model.head_dim)


def gain(config: SearchConfig, model: ModelConfig) -> float:
    """Returns the multiplier of cos and sin that all tables of a search have."""
    if config.gain is not None:
        return config.gain
    return math.sqrt(1 + math.log(config.factor) / math.log(model.original_len))
