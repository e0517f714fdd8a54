"""The batches of a run: a pure function of (config, step), read through Grain.

Row r of step n is row n * batch_size + r of one endless list, a mixture of endless sources. There is no other state: a
run resumes by asking for the next step, and any number of processes can split a batch by rows.
"""

import bisect
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data import lengths
from giraffe_jax.data.config import DataConfig, SourceConfig, StageConfig, SyntheticConfig
from giraffe_jax.data.packing import across_documents
from giraffe_jax.data.rows import ENDLESS, Batch, SyntheticRows, TextRows
from giraffe_jax.data.skip import SkipConfig, SkipRows
from giraffe_jax.data.source import load_tokens
from giraffe_jax.tokenizer import chat

FORMAT = 5  # version of the rows: raised when the same config makes other rows, so that a resumed run notices
DESCRIBED = 4  # rows, in a message
# Keys of a source that were added later, with their defaults, which leave the fingerprint as it was without the key.
LATER = dict(conversations=False, min_tokens=None, max_tokens=None, long_tokens=None, long_times=None)


class Mixture:
    """The endless rows of one stage, from its sources in proportion to their weights; `names` are for messages."""

    def __init__(self, rows: Sequence[Any], weights: Sequence[float], names: Sequence[str]):
        import grain

        # Grain maps an index to (source, row of the source). It does not make the rows, which depend on the step too.
        parts = [grain.MapDataset.range(ENDLESS).map(lambda i, j=j: (j, i)) for j in range(len(rows))]
        total = sum(weights)
        self._rows, self._names = rows, names
        self.longest = max(part.longest for part in rows)
        self._where: Any = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [w / total for w in weights])

    def row(self, index: int, step: int) -> Batch:
        """Returns row `index` as arrays [seq_len], for the batch of `step`."""
        source, at = self._where[index]
        return self._rows[source].row(int(at), step)

    def describe(self, index: int) -> str:
        """Returns what row `index` holds, in words: its documents, counted from 1 in the order read, and its source."""
        source, at = self._where[index]
        return f"{self._rows[source].describe(int(at))} of {self._names[source]}"


class Pipeline:
    """The batches of a config. `fingerprint` changes whenever the batches would: config, tokenizer or files."""

    def __init__(
        self,
        config: DataConfig,
        stages: Sequence[tuple[int, Mixture]],
        fingerprint: str,
        process: tuple[int, int],
        notes: tuple[str, ...] = (),
    ):
        """stages: the first step of each, and its rows. notes: lines about the sources, for the log."""
        self.config, self.fingerprint, self.notes = config, fingerprint, notes
        self._stages = stages
        self.longest = max(mixture.longest for _, mixture in stages)  # tokens of the longest document, before cutting
        index, processes = process
        share = config.batch_size // processes
        self.rows = range(index * share, (index + 1) * share)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Step `step`'s batch: tokens, targets, segments int32 and weights, positions float32, [rows, seq_len].

        rows: which rows of the global batch; None means those of this process.
        """
        mixture, start = self._at(step)
        batch_rows = [mixture.row(start + row, step) for row in (self.rows if rows is None else rows)]
        if self.config.across_documents:
            batch_rows = [across_documents(row) for row in batch_rows]
        return {name: np.stack([row[name] for row in batch_rows]) for name in batch_rows[0]}

    def describe(self, step: int) -> str:
        """Returns what this process reads in a step, in words: the first few documents of its first few rows."""
        mixture, start = self._at(step)
        descriptions = [mixture.describe(start + row) for row in self.rows[:DESCRIBED]]
        more = len(self.rows) - len(descriptions)
        return "; ".join(descriptions) + (f"; and {more} more {'row' if more == 1 else 'rows'}" if more else "")

    def _at(self, step: int) -> tuple[Mixture, int]:
        """The mixture of a step's stage, and the index of the batch's first row in it."""
        first, mixture = self._stages[bisect.bisect_right([first for first, _ in self._stages], step) - 1]
        return mixture, (step - first) * self.config.batch_size

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of `start_step`, `start_step` + 1, ... without end, prefetched by Grain's threads."""
        import grain

        steps = grain.MapDataset.range(start_step, ENDLESS // self.config.batch_size).map(self.batch)
        options = grain.ReadOptions(num_threads=min(2, self.config.prefetch), prefetch_buffer_size=self.config.prefetch)
        return iter(steps.to_iter_dataset(options))


def make_pipeline(config: DataConfig, tokenizer: Any, process: tuple[int, int] = (0, 1)) -> Pipeline:
    """Returns the pipeline of `config`; `process` = (index, count): each process reads its own rows of a batch.

    Raises ConfigError for keys that contradict each other and for files that cannot be read, FileNotFoundError for
    paths that do not exist.
    """
    _check(config, process)
    stages, contents, first = [], [], 0
    notes: list[str] = []
    for number, stage in enumerate(config.stages or (StageConfig(config.sources),)):
        where = f"data.stages[{number}].sources" if config.stages else "data.sources"
        rows: list[Any] = []
        for i, source in enumerate(stage.sources):
            seed = (config.seed, i, number) if number else (config.seed, i)
            if source.kind == "synthetic":
                rows.append(SyntheticRows(source.synthetic or SyntheticConfig(), tokenizer, config.seq_len, seed))
                continue
            name = f"{where}[{i}]"
            tokens, content = load_tokens(
                source.kind, source.path, tokenizer, config.cache_dir, name, conversations=source.conversations
            )
            contents.append(content)
            documents = lengths.of_epoch(tokens, source, name)
            notes += lengths.described(tokens, source, name)
            if config.skip is not None:
                rows.append(SkipRows(tokens, documents, config.seq_len, config.skip, seed))
            else:
                rows.append(TextRows(tokens, documents, config.seq_len, config.packing, seed))
        names = [f"{where}[{i}]" + (f" ({s.path})" if s.path else "") for i, s in enumerate(stage.sources)]
        stages.append((first, Mixture(rows, [source.weight for source in stage.sources], names)))
        first = stage.until or 0
    return Pipeline(config, stages, _fingerprint(config, tokenizer, contents), process, tuple(notes))


def _check(config: DataConfig, process: tuple[int, int]) -> None:
    if bool(config.sources) == bool(config.stages):
        raise ConfigError("data.sources: needs either sources, one mixture for all steps, or stages, each with its own")
    ends = [stage.until for stage in config.stages]
    firsts = [0, *(end or 0 for end in ends[:-1])]
    if ends and (ends[-1] is not None or firsts != sorted(set(firsts))):
        raise ConfigError(f"data.stages: `until` must increase from stage to stage, the last has none; got {ends}")
    for name in ("seq_len", "batch_size", "prefetch"):
        if getattr(config, name) < 1:
            raise ConfigError(f"data.{name}: got {getattr(config, name)}; at least 1 is needed")
    if config.skip is not None:
        _check_skip(config, config.skip)
    index, processes = process
    if config.batch_size % processes or not 0 <= index < processes:
        raise ConfigError(f"data.batch_size: {config.batch_size} rows cannot be shared evenly by {processes} processes")
    named = [(f"data.sources[{i}]", source) for i, source in enumerate(config.sources)]
    for number, stage in enumerate(config.stages):
        if not stage.sources:
            raise ConfigError(f"data.stages[{number}].sources: empty; name at least one source")
        named += [(f"data.stages[{number}].sources[{i}]", source) for i, source in enumerate(stage.sources)]
    for where, source in named:
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise ConfigError(f"{where}.weight: got {source.weight}; it takes a number above 0")
        lengths.check(source, where)
        if source.conversations and source.kind not in ("jsonl", "parquet"):
            raise ConfigError(f"{where}.conversations: only read by kinds 'jsonl', 'parquet'; this is {source.kind!r}")
        if source.kind == "synthetic":
            _check_synthetic(config, source, where)
        elif source.synthetic is not None:
            raise ConfigError(f"{where}.synthetic: only read by kind 'synthetic', this is {source.kind!r}")
        elif not source.path:
            raise ConfigError(f"{where}.path: missing; {source.kind!r} needs a file, a directory or a glob pattern")


def _without(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Drops values that equal their default, so that a new key does not change the fingerprint of older configs."""
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def _check_skip(config: DataConfig, skip: SkipConfig) -> None:
    if config.packing != "concat":
        raise ConfigError(f"data.packing: got {config.packing!r}, but with data.skip a row holds one document")
    if config.across_documents:
        raise ConfigError("data.across_documents: got True, but with data.skip a row holds one document")
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
    if synthetic.lengths and not 1 <= min(synthetic.lengths) <= max(synthetic.lengths) <= config.seq_len:
        raise ConfigError(
            f"{where}.synthetic.lengths: got {synthetic.lengths}; each is 1 to data.seq_len {config.seq_len}"
        )
    weights = (synthetic.answer_weight, synthetic.drawn_weight, synthetic.text_weight)
    if not synthetic.kinds or min(weights) < 0:
        raise ConfigError(f"{where}.synthetic: needs at least one kind, and weights of at least 0; got {synthetic}")


def _fingerprint(config: DataConfig, tokenizer: Any, contents: Sequence[str]) -> str:
    """sha256 of everything that determines the batches. Paths do not: the same files elsewhere are the same data."""
    settings: Mapping[str, Any] = asdict(config)
    decides = _without(settings, {"skip": None, "across_documents": False})
    decides = {k: v for k, v in decides.items() if k not in ("cache_dir", "prefetch")}
    for part in (decides, *decides["stages"]):
        part["sources"] = [_without(source, LATER) for source in part["sources"]]
        for source in part["sources"]:
            source.pop("path")
    decides_too = [tokenizer.fingerprint, tokenizer.eos_id, *tokenizer.prefix]
    if any(source.conversations for source in (*config.sources, *(s for t in config.stages for s in t.sources))):
        decides_too.append(chat.template_of(tokenizer, "data").fingerprint)
    text = json.dumps([FORMAT, decides, contents, *decides_too], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
