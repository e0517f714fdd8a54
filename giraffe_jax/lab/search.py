"""Evolutionary search for a divisor of every rotary plane's frequency, as in LongRoPE; the weights are not changed.

Ding et al., "LongRoPE", arXiv:2402.13753, algorithm 1, with the settings of its released code (microsoft/LongRoPE,
evolution/): divisors lie on a grid between 1 and 1.25 times the extension factor and never decrease towards slower
planes; the first population starts from position interpolation, NTK and YaRN; the best tables are the parents of
mutations and crossovers. recipe="longrope2" (Shang et al., arXiv:2502.20082) searches only the planes from a critical
one up, and which plane that is; see lab/tables.py. The objective is the mean loss on `data` over its weighted tokens:
all tokens of a text, or, with synthetic documents in which only answers have weight, LongRoPE2's needle-driven
perplexity.

One compiled program evaluates all tables of a generation, and all generations: the tables are its arguments. A search
is a pure function of its config. Its workdir holds config.json, search.jsonl (a row per generation, from which the same
command resumes; longrope2's rows have `critical`, the critical plane of each table) and positions.json, the best entry
so far.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from giraffe_jax import sharding
from giraffe_jax.config import ConfigError, build, to_dict
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.lab.tables import SearchConfig, Table, critical, divisors, first, gain, offspring, plain, table_of
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import Encoding, longrope_entry
from giraffe_jax.records import Progress, Rows, read_rows, write_atomically
from giraffe_jax.training.loop import POSITIONS, to_global
from giraffe_jax.training.step import eval_step
from giraffe_jax.training.workdir import DATA, claim, write_config

ROWS = "search.jsonl"


@dataclasses.dataclass(frozen=True)
class Found:
    """The best table of a search: its entry for `positions` of a config, its loss, and the best loss so far after each
    generation."""

    entry: dict[str, Any]
    nll: float  # nats per weighted token of the objective
    history: tuple[float, ...]


def search(config: SearchConfig | Any, workdir: str | Path, *, quiet: bool = False) -> Found:
    """Runs or resumes a search until config.generations, and returns the best table.

    Args:
      config: SearchConfig or the ConfigDict of a config file.
      workdir: local folder of the search's results.
      quiet: print no progress and no result.

    Raises:
      ConfigError: a wrong config, a batch_size that the mesh does not divide, or the workdir of another search.
    """
    config, workdir = build(SearchConfig, config), Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    loaded = load(config.source, config.model, tokenizer=config.tokenizer, mesh=mesh)
    model = dataclasses.replace(loaded.config, positions=())
    process = (jax.process_index(), jax.process_count())
    pipeline = make_pipeline(config.data, loaded.tokenizer, process)
    if config.data.batch_size % math.prod(mesh.shape[axis] for axis in ("data", "fsdp")):
        raise ConfigError(f"mesh: data x fsdp does not divide data.batch_size {config.data.batch_size}.")
    resolved = {k: v for k, v in to_dict(config).items() if k != "generations"} | {DATA: pipeline.fingerprint}
    if config.recipe == "longrope":
        del resolved["recipe"]  # so that searches begun before `recipe` existed resume
    if claim(workdir, resolved, loaded.tokenizer):
        write_config(workdir, resolved)

    with jax.set_mesh(mesh):
        params = loaded.params
        parts = [to_global(pipeline.batch(i), mesh) for i in range(config.batches)]
        batches = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
        if not float(batches["weights"].sum()) > 0:
            raise ConfigError("config.data: all tokens have weight 0; give answers or text some weight.")
        encoding = model.bind().replace(gain=np.float32(gain(config, model)))
        settings: dict[str, Any] = dict(model=model, chunk=config.loss_chunk, at_once=config.tables_at_once)

        def measure(tables: Sequence[Table]) -> list[float]:
            """Returns the losses of any number of tables, in calls on `children` tables each; the last is padded."""
            out: list[float] = []
            for i in range(0, len(tables), config.children):
                batch = list(tables[i : i + config.children])
                filled = batch + [batch[-1]] * (config.children - len(batch))
                inv_freq = np.stack([plain(model) / divisors(t, config) for t in filled]).astype(np.float32)
                losses = table_losses(params, batches, encoding, inv_freq, **settings)
                out += np.asarray(losses, np.float64)[: len(batch)].tolist()
            return [x if math.isfinite(x) else math.inf for x in out]

        return _evolve(config, model, workdir, measure, quiet, write=process[0] == 0)


@functools.partial(jax.jit, static_argnames=("model", "chunk", "at_once"))
def table_losses(
    params: Any,
    batches: Mapping[str, Array],
    encoding: Encoding,
    inv_freq: Float[Array | np.ndarray, "K R"],
    *,
    model: ModelConfig,
    chunk: int = 1024,
    at_once: int = 1,
) -> Float[Array, "K"]:
    """Returns the mean loss over all weighted tokens of the batches, for each of K tables of frequencies.

    Args:
      params: of the model.
      batches: of train_step, M of them stacked: [M B T].
      encoding: bound without positions; its inv_freq is ignored.
      inv_freq: [K R], radians per token.
      model: its config.
      chunk: tokens of a row whose logits are in memory at once.
      at_once: tables evaluated in one forward pass; further ones follow in the same program.
    """

    def one(inv_freq_R):
        e = encoding.replace(inv_freq=inv_freq_R)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, eval_step(params, batch, e, model=model, chunk=chunk)), None

        (nats, weight), _ = jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), dict(batches))
        return nats / weight

    return jax.lax.map(one, jnp.asarray(inv_freq), batch_size=at_once if at_once > 1 else None)


def _evolve(config: SearchConfig, model: ModelConfig, workdir: Path, measure, quiet: bool, write: bool) -> Found:
    """Returns the best table. Each generation is a pure function of the rows before it, the seed and its number, so a
    resumed search equals an uninterrupted one."""
    generations: list[dict[Table, float]] = []  # the new tables of each, with their losses
    if (workdir / ROWS).is_file():
        for row in read_rows(workdir / ROWS):
            planes = row.get("critical", [0] * len(row["divisors"]))
            tables = [table_of(xs, c, config) for xs, c in zip(row["divisors"], planes, strict=True)]
            losses = [math.inf if x is None else x for x in row["nll"]]
            generations.append(dict(zip(tables, losses, strict=True)))
    rows = Rows(workdir / ROWS) if write else None
    progress = None if quiet or not write else Progress(config.generations + 1, start=len(generations))
    for number in range(len(generations), config.generations + 1):
        began = time.perf_counter()
        rng = np.random.default_rng([config.seed, number])
        seen = {table: loss for generation in generations for table, loss in generation.items()}
        tables = offspring(rng, best(generations, config.parents), seen, config) if seen else first(rng, config, model)
        generations.append(dict(zip(tables, measure(tables), strict=True)))
        table, loss = _best_one(generations)
        if rows is not None:
            row = {"generation": number, "best": loss, "best_divisors": divisors(table, config).tolist()}
            if config.recipe == "longrope2":
                row |= {"best_critical": critical(table), "critical": [critical(t) for t in generations[-1]]}
            row |= {"tables": len(tables), "seconds": round(time.perf_counter() - began, 3)}
            row["nll"] = list(generations[-1].values())
            rows.append(row | {"divisors": [divisors(t, config).tolist() for t in generations[-1]]})
            rows.sync()
            write_atomically(workdir / POSITIONS, json.dumps([_entry(table, config, model)]) + "\n")
        if progress is not None:
            suffix = f", critical plane {critical(table)}" if config.recipe == "longrope2" else ""
            progress.update(number + 1, f"best perplexity {math.exp(min(loss, 700.0)):.4g}{suffix}")
    for log in (rows, progress):
        if log is not None:
            log.close()
    table, loss = _best_one(generations)
    entry = _entry(table, config, model)
    if not quiet and write:
        print(f"searched, for any config: positions = {json.dumps([entry])}", flush=True)
    history = np.minimum.accumulate([min(generation.values()) for generation in generations])
    return Found(entry, loss, tuple(history.tolist()))


def best(generations: Sequence[Mapping[Table, float]], n: int) -> list[Table]:
    """Returns the n best tables of all generations, best first."""
    losses = {table: loss for generation in generations for table, loss in generation.items()}
    return sorted(losses, key=lambda table: (losses[table], table))[:n]


def _best_one(generations: Sequence[Mapping[Table, float]]) -> tuple[Table, float]:
    (table,) = best(generations, 1)
    return table, next(generation[table] for generation in generations if table in generation)


def _entry(table: Table, config: SearchConfig, model: ModelConfig) -> dict[str, Any]:
    settings: dict[str, Any] = dict(head_dim=model.head_dim, theta=model.theta, factor=config.factor)
    return longrope_entry(plain(model) / divisors(table, config), gain(config, model), **settings)
