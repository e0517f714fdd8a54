"""The tables of divisors that a search evaluates: first population, mutations and crossovers.

Recipe "longrope" searches all planes. "longrope2" (Shang et al., arXiv:2502.20082, algorithms 1 and 2) searches only
the planes from a critical plane c up, with divisors between 1 and 2 times the extension factor. Planes below c follow
the NTK formula with the base that gives plane c its searched divisor: divisor_i = divisor_c^(i / c). The critical plane
is searched too: the first population has a table for each candidate, a child inherits c from its (first) parent, and
the loss selects.

The first author's code was read as well (J-shang/LongRoPE, evolution/). Where paper and code differ or say nothing:

- Algorithm 1 computes the NTK base of all first tables from the first candidate, which would make divisors drop at c;
  here each table's base follows from its own c, as in algorithm 2 and in the code.
- The code takes one fixed critical plane, and its mutations also change planes below it; here, as in the paper, those
  always follow the NTK formula.
- The paper does not define crossover: here it exchanges planes that both parents search.
- The paper does not define the grid of divisors, here `step` for all planes, or the gain during the search, here
  LongRoPE's unless the config sets one.
- The paper's needle is at the beginning of a book; in synthetic documents its position is random.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float

from giraffe_jax.config import Bound, ConfigError, check_fields
from giraffe_jax.data.config import DataConfig
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import check, frequencies
from giraffe_jax.sharding import MeshConfig

TRIES = 20  # attempts at a child that was not evaluated before; then a repeated one is accepted

Count = Annotated[int, Bound(1, high=2**16)]  # bounded, since all of them are in memory at once
NTK = -1  # marks, in a table, the planes below the critical one
Table = tuple[int, ...]  # per plane: its divisor, as a number of grid steps above 1, or NTK


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Config of a search. The defaults are those of LongRoPE's released code for Llama."""

    source: str  # Weights: anything that TrainConfig.source accepts.
    factor: Annotated[float, Bound(1.0, above=True, high=1e6)]  # Context extension factor to search for.
    data: DataConfig  # Documents of the objective. For needles: synthetic ones with drawn_weight and text_weight 0.
    # "longrope" searches the divisors of all planes; "longrope2" only those from a critical plane up, and that plane.
    recipe: Literal["longrope", "longrope2"] = "longrope"
    batches: Count = 1  # Batches that each table is measured on, the same for all.
    # Keys of ModelConfig that differ from the source's.
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""  # File or directory of a tokenizer. "" takes the source's.
    # Lists of position methods whose frequencies start the first population. () means linear, ntk and yarn with
    # `factor`. longrope2 makes its own.
    starts: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    # Multiplier of cos and sin for all tables. None is LongRoPE's sqrt(1 + ln(factor) / ln(original_len)).
    gain: Annotated[float, Bound(0.0, above=True)] | None = None
    # Generations after the first population. May be raised to continue a finished search.
    generations: Annotated[int, Bound(0)] = 40
    population: Count = 64  # Tables of the first population.
    parents: Annotated[int, Bound(2)] = 32  # Number of best tables, of all generations, that the next one is made from.
    mutations: Annotated[int, Bound(0, high=2**16)] = 16  # Children made by mutation, per generation.
    crossovers: Annotated[int, Bound(0, high=2**16)] = 16  # Children made by crossover, per generation.
    # Probability that a plane mutates, or is taken from the second parent.
    probability: Annotated[float, Bound(0.0, above=True, high=1.0)] = 0.3
    step: Annotated[float, Bound(1e-9)] = 0.01  # Spacing of the grid of divisors.
    # Tables evaluated in one forward pass. More is faster if memory allows and the matmuls are small.
    tables_at_once: Count = 1
    loss_chunk: Annotated[int, Bound(1)] = 1024  # Tokens of a row whose logits are in memory at once.
    mesh: MeshConfig = MeshConfig()  # How devices share the work.
    seed: Annotated[int, Bound(0)] = 0  # Seed of the first population, mutations and crossovers.

    def __post_init__(self):
        check_fields(self, "config")
        if self.parents > self.population or self.children < 1:
            raise ConfigError(
                "config: expected 2 <= parents <= population and mutations + crossovers >= 1; got parents "
                f"{self.parents}, population {self.population}, mutations {self.mutations}, crossovers "
                f"{self.crossovers}."
            )
        for i, start in enumerate(self.starts):
            check(start, f"config.starts[{i}]")
        if self.starts and self.recipe == "longrope2":
            raise ConfigError(
                "config.starts: longrope2 makes its own first tables, one for each critical plane; leave starts out, "
                'or set recipe="longrope".'
            )
        if self.bottom > self.top:
            raise ConfigError(
                f"config.step: no divisor from {self.factor:g} to {2 * self.factor:g} is 1 plus a multiple of "
                f"{self.step:g}; longrope2 searches there. Take a smaller step."
            )
        if "positions" in self.model:
            raise ConfigError("config.model.positions: set by the search; `starts` lists where it begins.")

    @property
    def children(self) -> int:
        """Tables per generation."""
        return self.mutations + self.crossovers

    @property
    def bottom(self) -> int:
        """Grid steps of the smallest searched divisor, which is 1, or the factor with longrope2."""
        return math.ceil((self.factor - 1) / self.step - 1e-9) if self.recipe == "longrope2" else 0

    @property
    def top(self) -> int:
        """Grid steps of the largest searched divisor: 1.25 times the factor, or twice with longrope2."""
        most = 2 if self.recipe == "longrope2" else 1.25
        return math.floor((most * self.factor - 1) / self.step + 1e-9)


def first(rng: np.random.Generator, config: SearchConfig, model: ModelConfig) -> list[Table]:
    """Returns the first population: the starts, rounded to the grid, then mutations of each in turn."""
    starts = _critical_starts(rng, config, model) if config.recipe == "longrope2" else _starts(config, model)
    tables = dict.fromkeys(starts)
    for i in range(config.population - len(starts)):
        tables[mutation(rng, starts[i % len(starts)], tables, config)] = None
    return list(tables)[: config.population]


def _starts(config: SearchConfig, model: ModelConfig) -> list[Table]:
    """Returns the tables of config.starts, or of PI, NTK and YaRN, deduplicated."""
    default = tuple((dict(name=name, factor=config.factor),) for name in ("linear", "ntk", "yarn"))
    shape: dict[str, Any] = dict(head_dim=model.head_dim, theta=model.theta, original_len=model.original_len)
    tables: dict[Table, None] = {}
    for i, start in enumerate(config.starts or default):
        inv_freq = np.asarray(frequencies(start, **shape, where=f"config.starts[{i}]")[0], np.float64)
        divisor = plain(model) / np.maximum(inv_freq, 1e-30)
        steps = np.clip(np.rint((divisor - 1) / config.step), 0, config.top).astype(int)
        tables[tuple(np.maximum.accumulate(steps).tolist())] = None
    return list(tables)


def _critical_starts(rng: np.random.Generator, config: SearchConfig, model: ModelConfig) -> list[Table]:
    """Returns a table for each critical plane; all planes from it on have the same random divisor."""
    planes = model.head_dim // 2
    draws = [(c, int(rng.integers(config.bottom, config.top + 1))) for c in critical_planes(model)]
    return [(NTK,) * c + (steps,) * (planes - c) for c, steps in draws]


def critical_planes(model: ModelConfig) -> range:
    """Returns LongRoPE2's candidates for the critical plane: from the first plane with fewer than 10 periods in
    original_len to the first with less than one (the theoretical critical plane). If no plane has so few, the last."""
    last = model.head_dim // 2 - 1
    reach = (model.original_len / (2 * math.pi * periods) for periods in (10, 1))
    ends = (math.ceil(model.head_dim / 2 * math.log(x, model.theta)) for x in reach)
    low, high = (min(max(end, 0), last) for end in ends)
    return range(low, high + 1)


def offspring(
    rng: np.random.Generator, parents: Sequence[Table], seen: Mapping[Table, Any], config: SearchConfig
) -> list[Table]:
    """Returns the children of a generation: mutations of random parents, then crossovers of random pairs.

    Args:
      rng: source of randomness.
      parents: the best tables.
      seen: all tables evaluated so far; children are new if TRIES attempts find new ones.
      config: of the search.
    """
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
    """Returns the table with each searched plane redrawn, with the config's probability, between the values of its two
    neighbours, so that divisors stay monotone."""
    child = table
    for _ in range(TRIES):
        new = list(table)
        for i in range(critical(table), len(new)):
            if rng.uniform() < config.probability:
                low = max(new[i - 1], config.bottom) if i else config.bottom
                high = new[i + 1] if i + 1 < len(new) else config.top
                new[i] = int(rng.integers(low, high + 1))
        child = tuple(new)
        if child not in seen:
            break
    return child


def crossover(
    rng: np.random.Generator, table: Table, other: Table, seen: Mapping[Table, Any], config: SearchConfig
) -> Table:
    """Returns the table with planes taken from the other one: each plane that both search, with the config's
    probability. If no attempt gives a new monotone table, returns a mutation of `table`."""
    both = np.arange(len(table)) >= max(critical(table), critical(other))
    for _ in range(TRIES):
        take = both & (rng.uniform(size=len(table)) < config.probability)
        child = tuple(np.where(take, other, table).tolist())
        if child not in seen and all(a <= b for a, b in zip(child, child[1:], strict=False)):
            return child
    return mutation(rng, table, seen, config)


def critical(table: Table) -> int:
    """Returns the index of a table's critical plane: the number of planes that follow NTK, 0 if all are searched."""
    return table.count(NTK)


def divisors(table: Table, config: SearchConfig) -> Float[np.ndarray, "R"]:
    """Returns a table's divisors, one per rotary plane."""
    values, c = 1 + config.step * np.asarray(table, np.float64), critical(table)
    if c:
        values[:c] = values[c] ** (np.arange(c) / c)
    return np.round(values, 9)


def table_of(divisors: Sequence[float], c: int, config: SearchConfig) -> Table:
    """Returns the table with these divisors; the first `c` planes follow NTK. The inverse of `divisors`."""
    return (NTK,) * c + tuple(round((x - 1) / config.step) for x in divisors[c:])


def plain(model: ModelConfig) -> Float[np.ndarray, "R"]:
    """Returns the frequencies of plain RoPE, which are divided by divisors: radians per token, float64."""
    return np.float64(model.theta) ** (-2 * np.arange(model.head_dim // 2, dtype=np.float64) / model.head_dim)


def gain(config: SearchConfig, model: ModelConfig) -> float:
    """Returns the multiplier of cos and sin, the same for all tables of a search."""
    if config.gain is not None:
        return config.gain
    return math.sqrt(1 + math.log(config.factor) / math.log(model.original_len))
