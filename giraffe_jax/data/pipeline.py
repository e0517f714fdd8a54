"""The batches of a run: a pure function of (config, step), read through Grain.

Row r of step n is row n * batch_size + r of one endless list, a mixture of endless sources. Nothing else is state: a
run goes on after any step by asking for the next one, and any number of processes can share a batch by its rows.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Packing, Plan, empty_row, plan, window
from giraffe_jax.data.skip import ENDLESS, SkipConfig, SkipRows
from giraffe_jax.data.source import Tokens, load_tokens
from giraffe_jax.data.synthetic import KINDS, Kind, piece_encoder, shortest_length, synthetic_document

FORMAT = 3  # of the rows: raised whenever the same config makes other rows, so that a resumed run notices
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class SyntheticConfig:
    """Retrieval documents (giraffe_jax/data/synthetic.py), several to a window.

    Lengths are drawn between min_len and max_len (None: the window); over the first ramp_steps steps the longest grows
    from min_len to max_len, by the same factor in every step. Weights of the loss: answer_weight for answers,
    record_weight for records and questions, whose keys and values are random and cannot be learned, filler_weight for
    everything else.
    """

    kinds: tuple[Kind, ...] = KINDS
    min_len: int = 32
    max_len: int | None = None
    ramp_steps: int = 0
    answer_weight: float = 1.0
    record_weight: float = 0.1
    filler_weight: float = 1.0


@dataclass(frozen=True)
class SourceConfig:
    """One part of the mixture; `weight` is its share of the rows (any unit). Only synthetic documents have no path."""

    kind: Literal["tfds", "text", "jsonl", "parquet", "synthetic"]
    path: str = ""
    weight: float = 1.0
    synthetic: SyntheticConfig | None = None


@dataclass(frozen=True)
class DataConfig:
    """What a run reads. `batch_size` counts rows of all processes together; `cache_dir` keeps tokens between runs.

    With `skip` a row of text is one document's stretches that lie apart (data/skip.py) instead of a packed window.
    """

    sources: tuple[SourceConfig, ...]
    seq_len: int
    batch_size: int
    seed: int = 0
    packing: Packing = "concat"
    skip: SkipConfig | None = None
    cache_dir: str = ""
    prefetch: int = 4


class TextRows(Sequence):
    """The windows of a source's documents, epoch after epoch, the windows in a new order in each.

    Concatenation also joins the documents in a new order in each epoch; whole documents are packed the same way in all.
    """

    def __init__(self, tokens: Tokens, seq_len: int, how: Packing, seed: tuple[int, ...]):
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        self.how: Packing = how
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)
        self.num_windows = self._plan(0).num_windows  # however the documents are ordered

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> Batch:
        epoch, at = divmod(int(index), self.num_windows)
        plan_ = self._plan(epoch if self.how == "concat" else 0)
        return window(plan_, int(self._order(epoch)[at]), self.tokens.tokens, self.seq_len)

    def _make_plan(self, epoch: int) -> Plan:
        order = np.random.default_rng((*self.seed, epoch, 0)).permutation(len(self.tokens.ends))
        return plan(self.tokens.ends, order, self.seq_len, self.how)

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch, 1)).permutation(self.num_windows)


class SyntheticRows(Sequence):
    """Windows of synthetic documents, each with its own segment; row i depends on the seed and i alone."""

    def __init__(self, config: SyntheticConfig, tokenizer: Any, seq_len: int, ramp_rows: float, seed: tuple[int, ...]):
        self.config, self.seq_len, self.ramp_rows, self.seed = config, seq_len, ramp_rows, seed
        try:
            self.encode = piece_encoder(tokenizer)
        except ValueError as e:
            raise ConfigError(f"data.sources: {e}") from e
        self.eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.max_len = config.max_len or seq_len
        drawn, rest = config.record_weight, config.filler_weight
        self.weight_of = {"answer": config.answer_weight, "record": drawn, "query": drawn, "filler": rest}
        need = max(shortest_length(kind, self.count) for kind in config.kinds) + len(self.eos)
        if config.min_len < need:
            kinds = ", ".join(config.kinds)
            raise ConfigError(
                f"synthetic.min_len: got {config.min_len}; {kinds} documents take at least {need} tokens "
                "with this tokenizer"
            )

    def __len__(self) -> int:
        return ENDLESS

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def __getitem__(self, index: Any) -> Batch:
        rng = np.random.default_rng((*self.seed, int(index)))
        ramp = min(1.0, int(index) / self.ramp_rows) if self.ramp_rows else 1.0
        longest = self.config.min_len * (self.max_len / self.config.min_len) ** ramp
        row, at, segment = empty_row(self.seq_len), 0, 1
        while (room := self.seq_len - at) >= self.config.min_len:
            # Half of the documents are as long as may be: drawn lengths alone would hardly ever span the window.
            shortest = self.config.min_len
            length = longest if rng.uniform() < 0.5 else shortest * (longest / shortest) ** rng.uniform()
            at += self._fill(row, at, segment, rng, min(room, int(length)))
            segment += 1
        return row

    def _fill(self, row: Batch, at: int, segment: int, rng: np.random.Generator, length: int) -> int:
        kind = self.config.kinds[int(rng.integers(len(self.config.kinds)))]
        tokens: list[int] = []
        weights: list[float] = []
        for piece in synthetic_document(rng, kind, length - len(self.eos), self.count):
            ids = self.encode(piece.text)
            tokens.extend(ids)
            weights.extend([self.weight_of[piece.role]] * len(ids))
        tokens.extend(self.eos)
        weights.extend([self.weight_of["filler"]] * len(self.eos))
        n = len(tokens)
        row["tokens"][at : at + n] = tokens
        row["targets"][at : at + n - 1] = tokens[1:]
        row["weights"][at : at + n - 1] = weights[1:]
        row["positions"][at : at + n] = np.arange(n)
        row["segments"][at : at + n] = segment
        return n


class Pipeline:
    """The batches of a config. `fingerprint` changes whenever the batches would: config, tokenizer or files."""

    def __init__(self, config: DataConfig, rows: Any, fingerprint: str, process: tuple[int, int]):
        self.config, self.fingerprint = config, fingerprint
        self._rows = rows
        index, processes = process
        share = config.batch_size // processes
        self.rows = range(index * share, (index + 1) * share)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Step `step`'s batch: tokens, targets, segments int32 and weights, positions float32, [rows, seq_len].

        rows: which rows of the global batch; None means those of this process.
        """
        start = step * self.config.batch_size
        found = [self._rows[start + row] for row in (self.rows if rows is None else rows)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of `start_step`, `start_step` + 1, ... without end, made ahead of time by Grain's threads."""
        import grain

        steps = grain.MapDataset.range(start_step, ENDLESS // self.config.batch_size).map(self.batch)
        options = grain.ReadOptions(num_threads=min(2, self.config.prefetch), prefetch_buffer_size=self.config.prefetch)
        return iter(steps.to_iter_dataset(options))


def make_pipeline(config: DataConfig, tokenizer: Any, process: tuple[int, int] = (0, 1)) -> Pipeline:
    """The pipeline of `config`; `process` = (index, count) of the process that reads, each reading its own rows.

    Raises ConfigError for what cannot be read so, FileNotFoundError for paths with nothing there.
    """
    import grain

    _check(config, process)
    total = sum(source.weight for source in config.sources)
    datasets, contents = [], []
    for i, source in enumerate(config.sources):
        where = f"data.sources[{i}]"
        if source.kind == "synthetic":
            synthetic = source.synthetic or SyntheticConfig()
            ramp_rows = synthetic.ramp_steps * config.batch_size * source.weight / total
            rows: Sequence = SyntheticRows(synthetic, tokenizer, config.seq_len, ramp_rows, (config.seed, i))
        else:
            tokens, content = load_tokens(source.kind, source.path, tokenizer, config.cache_dir, where)
            contents.append(content)
            seed = (config.seed, i)
            if config.skip is not None:
                rows = SkipRows(tokens, config.seq_len, config.skip, seed)
            else:
                rows = TextRows(tokens, config.seq_len, config.packing, seed)
        datasets.append(grain.MapDataset.source(rows))
    mixed = datasets[0]
    if len(datasets) > 1:
        mixed = grain.MapDataset.mix(datasets, weights=[source.weight / total for source in config.sources])
    return Pipeline(config, mixed, _fingerprint(config, tokenizer, contents), process)


def _check(config: DataConfig, process: tuple[int, int]) -> None:
    if not config.sources:
        raise ConfigError("data.sources: empty; name at least one source")
    for name in ("seq_len", "batch_size", "prefetch"):
        if getattr(config, name) < 1:
            raise ConfigError(f"data.{name}: got {getattr(config, name)}; at least 1 is needed")
    if config.skip is not None:
        _check_skip(config, config.skip)
    index, processes = process
    if config.batch_size % processes or not 0 <= index < processes:
        raise ConfigError(f"data.batch_size: {config.batch_size} rows cannot be shared evenly by {processes} processes")
    for i, source in enumerate(config.sources):
        where = f"data.sources[{i}]"
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise ConfigError(f"{where}.weight: got {source.weight}; it takes a number above 0")
        if source.kind == "synthetic":
            _check_synthetic(config, source, where)
        elif source.synthetic is not None:
            raise ConfigError(f"{where}.synthetic: only read by kind 'synthetic', this is {source.kind!r}")
        elif not source.path:
            raise ConfigError(f"{where}.path: missing; {source.kind!r} needs a file, a directory or a glob pattern")


def _check_skip(config: DataConfig, skip: SkipConfig) -> None:
    if config.packing != "concat":
        raise ConfigError(f"data.packing: got {config.packing!r}, but with data.skip a row holds one document")
    factor, rest = divmod(skip.target_len, config.seq_len)
    if factor < 1 or (skip.kind == "cream" and (factor < 2 or rest)):
        allowed = "2, 3, ... times" if skip.kind == "cream" else "at least"
        raise ConfigError(
            f"data.skip.target_len: got {skip.target_len}; {skip.kind} takes {allowed} seq_len {config.seq_len}"
        )
    if skip.reach < 1 or not skip.sigma > 0:
        raise ConfigError(f"data.skip: needs reach >= 1 and sigma > 0, got {skip.reach} and {skip.sigma}")


def _check_synthetic(config: DataConfig, source: SourceConfig, where: str) -> None:
    if source.path:
        raise ConfigError(f"{where}.path: got {source.path!r}, but synthetic documents are made, not read")
    synthetic = source.synthetic or SyntheticConfig()
    if not 1 <= synthetic.min_len <= (synthetic.max_len or config.seq_len) <= config.seq_len:
        raise ConfigError(
            f"{where}.synthetic: needs 1 <= min_len <= max_len <= data.seq_len, got "
            f"{synthetic.min_len}, {synthetic.max_len}, {config.seq_len}"
        )
    weights = (synthetic.answer_weight, synthetic.record_weight, synthetic.filler_weight)
    if not synthetic.kinds or synthetic.ramp_steps < 0 or min(weights) < 0:
        raise ConfigError(f"{where}.synthetic: needs at least one kind, and no number below 0; got {synthetic}")


def _fingerprint(config: DataConfig, tokenizer: Any, contents: Sequence[str]) -> str:
    """sha256 of all that decides the batches. Paths do not: the same files elsewhere are the same data."""
    made: Mapping[str, Any] = asdict(config)
    decides = {k: v for k, v in made.items() if k not in ("cache_dir", "prefetch") and (k, v) != ("skip", None)}
    for source in decides["sources"]:
        source.pop("path")
    text = json.dumps([FORMAT, decides, contents, tokenizer.fingerprint, tokenizer.eos_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
