"""The batches of a run: a pure function of (config, step), read through Grain.

Row r of step n is row n * batch_size + r of one endless list, a mixture of endless sources. Nothing else is state: a
run goes on after any step by asking for the next one, and any number of processes can share a batch by its rows.
"""

import bisect
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np

from giraffe_jax.config import Bound, ConfigError
from giraffe_jax.data.packing import Length, Packing, Plan, empty_row, plan, window
from giraffe_jax.data.skip import SkipConfig, SkipRows
from giraffe_jax.data.source import Tokens, load_tokens
from giraffe_jax.data.synthetic import KINDS, Kind, piece_encoder, shortest_length, synthetic_document

ENDLESS = 1 << 40
FORMAT = 5  # of the rows: raised whenever the same config makes other rows, so that a resumed run notices
DESCRIBED = 4  # rows, in a message
MOST = 2**31 - 1  # tokens of a batch
Batch = dict[str, np.ndarray]
Weight = Annotated[float, Bound(0.0)]


@dataclass(frozen=True)
class SyntheticConfig:
    """Retrieval documents (giraffe_jax/data/synthetic.py), several to a window.

    kinds: drawn for each document, alike; a kind named twice is twice as likely.
    lengths: tokens of a document; each batch draws one for all of its documents, and a window holds as many as fit.
      Without it every document draws its own length between min_len and max_len (None: the window).
    Weights of the loss: drawn_weight for keys and values where they first stand and for the key that is asked, which
    nothing predicts; answer_weight for answers; text_weight for everything else.
    """

    kinds: tuple[Kind, ...] = KINDS
    lengths: tuple[Length, ...] = ()
    min_len: Length = 32
    max_len: Length | None = None
    answer_weight: Weight = 1.0
    drawn_weight: Weight = 0.0
    text_weight: Weight = 1.0


@dataclass(frozen=True)
class SourceConfig:
    """One part of the mixture; `weight` is its share of the rows (any unit). Only synthetic documents have no path."""

    kind: Literal["tfds", "text", "jsonl", "parquet", "synthetic"]
    path: str = ""
    weight: Annotated[float, Bound(0.0, above=True)] = 1.0
    synthetic: SyntheticConfig | None = None


@dataclass(frozen=True)
class StageConfig:
    """A stretch of a curriculum: its mixture is read up to step `until`; None, for the last stage, is to the end."""

    sources: tuple[SourceConfig, ...]
    until: Annotated[int, Bound(1)] | None = None


@dataclass(frozen=True)
class DataConfig:
    """What a run reads. `batch_size` counts rows of all processes together.

    `cache_dir` keeps tokens between runs and may be emptied between them; "" is $GIRAFFE_CACHE, else giraffe-jax in
    $XDG_CACHE_HOME or ~/.cache (data/source.py).

    `sources` is one mixture for all steps; `stages` in its place are one after the other, which stage a step belongs to
    being a function of the step alone. With `skip` a row of text is one document's stretches that lie apart
    (data/skip.py) instead of a packed window.
    """

    seq_len: Length
    batch_size: Annotated[int, Bound(1, high=MOST)]
    sources: tuple[SourceConfig, ...] = ()
    stages: tuple[StageConfig, ...] = ()
    seed: Annotated[int, Bound(0)] = 0
    packing: Packing = "concat"
    skip: SkipConfig | None = None
    cache_dir: str = ""
    prefetch: Annotated[int, Bound(1, high=1024)] = 4  # batches made ahead of time

    def __post_init__(self):
        if self.batch_size * self.seq_len > MOST:
            raise ConfigError(
                f"data.batch_size: {self.batch_size} rows of data.seq_len {self.seq_len} are "
                f"{self.batch_size * self.seq_len:,} tokens; a batch has at most {MOST:,}."
            )


class TextRows:
    """The windows of a source's documents, epoch after epoch, the windows in a new order in each.

    Concatenation also joins the documents in a new order in each epoch; whole documents are packed the same way in all.
    """

    def __init__(self, tokens: Tokens, seq_len: int, how: Packing, seed: tuple[int, ...]):
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        self.how: Packing = how
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)
        self.num_windows = self._plan(0).num_windows  # however the documents are ordered
        self.longest = tokens.longest

    def row(self, index: int, step: int) -> Batch:
        epoch, at = divmod(index, self.num_windows)
        plan_ = self._plan(epoch if self.how == "concat" else 0)
        return window(plan_, int(self._order(epoch)[at]), self.tokens.tokens, self.seq_len)

    def describe(self, index: int) -> str:
        epoch, at = divmod(index, self.num_windows)
        plan_, number = self._plan(epoch if self.how == "concat" else 0), int(self._order(epoch)[at])
        starts = plan_.start[slice(*plan_.first[number : number + 2])]
        found = np.searchsorted(self.tokens.ends, starts, side="right")
        return self.tokens.describe(list(dict.fromkeys(found.tolist())))

    def _make_plan(self, epoch: int) -> Plan:
        order = np.random.default_rng((*self.seed, epoch, 0)).permutation(len(self.tokens.ends))
        return plan(self.tokens.ends, order, self.seq_len, self.how)

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch, 1)).permutation(self.num_windows)


class SyntheticRows:
    """Windows of synthetic documents, each with its own segment; row i depends on the seed, i and its step alone."""

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
        return len(self.encode(text))

    def row(self, index: int, step: int) -> Batch:
        rng = np.random.default_rng((*self.seed, index))
        row = empty_row(self.seq_len)
        for segment, (at, length) in enumerate(self._documents(rng, step), 1):
            self._fill(row, at, segment, rng, length)
        return row

    def describe(self, index: int) -> str:
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
            # Half of the documents are as long as may be: drawn lengths alone would hardly ever span the window.
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


class Mixture:
    """The endless rows of one stage's sources, in the proportions of their weights; `names` are for messages."""

    def __init__(self, rows: Sequence[Any], weights: Sequence[float], names: Sequence[str]):
        import grain

        # Grain says which source's how-manieth row comes where; the rows themselves need the step too.
        parts = [grain.MapDataset.range(ENDLESS).map(lambda i, j=j: (j, i)) for j in range(len(rows))]
        total = sum(weights)
        self._rows, self._names = rows, names
        self.longest = max(part.longest for part in rows)
        self._where: Any = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [w / total for w in weights])

    def row(self, index: int, step: int) -> Batch:
        source, at = self._where[index]
        return self._rows[source].row(int(at), step)

    def describe(self, index: int) -> str:
        """What row `index` holds: of which source, and which of its documents, counted from 1 in the order read."""
        source, at = self._where[index]
        return f"{self._rows[source].describe(int(at))} of {self._names[source]}"


class Pipeline:
    """The batches of a config. `fingerprint` changes whenever the batches would: config, tokenizer or files."""

    def __init__(
        self, config: DataConfig, stages: Sequence[tuple[int, Mixture]], fingerprint: str, process: tuple[int, int]
    ):
        """stages: the first step of each, and its rows."""
        self.config, self.fingerprint = config, fingerprint
        self._stages = stages
        self.longest = max(mixture.longest for _, mixture in stages)  # tokens of a document, whole
        index, processes = process
        share = config.batch_size // processes
        self.rows = range(index * share, (index + 1) * share)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Step `step`'s batch: tokens, targets, segments int32 and weights, positions float32, [rows, seq_len].

        rows: which rows of the global batch; None means those of this process.
        """
        mixture, start = self._at(step)
        found = [mixture.row(start + row, step) for row in (self.rows if rows is None else rows)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def describe(self, step: int) -> str:
        """What this process reads in a step, in words: its first few rows, and the first few documents of each."""
        mixture, start = self._at(step)
        said = [mixture.describe(start + row) for row in self.rows[:DESCRIBED]]
        more = len(self.rows) - len(said)
        return "; ".join(said) + (f"; and {more} more {'row' if more == 1 else 'rows'}" if more else "")

    def _at(self, step: int) -> tuple[Mixture, int]:
        """The mixture of a step's stage, and the index of the batch's first row in it."""
        first, mixture = self._stages[bisect.bisect_right([first for first, _ in self._stages], step) - 1]
        return mixture, (step - first) * self.config.batch_size

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
    _check(config, process)
    stages, contents, first = [], [], 0
    for number, stage in enumerate(config.stages or (StageConfig(config.sources),)):
        where = f"data.stages[{number}].sources" if config.stages else "data.sources"
        rows: list[Any] = []
        for i, source in enumerate(stage.sources):
            seed = (config.seed, i, number) if number else (config.seed, i)
            if source.kind == "synthetic":
                rows.append(SyntheticRows(source.synthetic or SyntheticConfig(), tokenizer, config.seq_len, seed))
                continue
            tokens, content = load_tokens(source.kind, source.path, tokenizer, config.cache_dir, f"{where}[{i}]")
            contents.append(content)
            if config.skip is not None:
                rows.append(SkipRows(tokens, config.seq_len, config.skip, seed))
            else:
                rows.append(TextRows(tokens, config.seq_len, config.packing, seed))
        names = [f"{where}[{i}]" + (f" ({s.path})" if s.path else "") for i, s in enumerate(stage.sources)]
        stages.append((first, Mixture(rows, [source.weight for source in stage.sources], names)))
        first = stage.until or 0
    return Pipeline(config, stages, _fingerprint(config, tokenizer, contents), process)


def _check(config: DataConfig, process: tuple[int, int]) -> None:
    if bool(config.sources) == bool(config.stages):
        raise ConfigError("data.sources: needs either sources, one mixture for all steps, or stages, each with its own")
    ends = [stage.until for stage in config.stages]
    firsts = [0, *(end or 0 for end in ends[:-1])]
    if ends and (ends[-1] is not None or firsts != sorted(set(firsts))):
        raise ConfigError(f"data.stages: `until` must grow from stage to stage, with none at the last; got {ends}")
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
    if synthetic.lengths and not 1 <= min(synthetic.lengths) <= max(synthetic.lengths) <= config.seq_len:
        raise ConfigError(
            f"{where}.synthetic.lengths: got {synthetic.lengths}; each is 1 to data.seq_len {config.seq_len}"
        )
    weights = (synthetic.answer_weight, synthetic.drawn_weight, synthetic.text_weight)
    if not synthetic.kinds or min(weights) < 0:
        raise ConfigError(f"{where}.synthetic: needs at least one kind, and no number below 0; got {synthetic}")


def _fingerprint(config: DataConfig, tokenizer: Any, contents: Sequence[str]) -> str:
    """sha256 of all that decides the batches. Paths do not: the same files elsewhere are the same data."""
    made: Mapping[str, Any] = asdict(config)
    decides = {k: v for k, v in made.items() if k not in ("cache_dir", "prefetch") and (k, v) != ("skip", None)}
    for source in (*decides["sources"], *(source for stage in decides["stages"] for source in stage["sources"])):
        source.pop("path")
    decides_too = [tokenizer.fingerprint, tokenizer.eos_id, *tokenizer.prefix]
    text = json.dumps([FORMAT, decides, contents, *decides_too], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
