"""What a run reads: a mixture of sources, or a curriculum of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from giraffe_jax.config import Bound, ConfigError
from giraffe_jax.data.packing import Length, Packing
from giraffe_jax.data.skip import SkipConfig
from giraffe_jax.data.synthetic import KINDS, Kind

MOST = 2**31 - 1  # tokens of a batch
Weight = Annotated[float, Bound(0.0)]
Tokens = Annotated[int, Bound(1)]  # of a document


@dataclass(frozen=True)
class SyntheticConfig:
    """Synthetic retrieval documents (giraffe_jax/data/synthetic.py), several to a row."""

    kinds: tuple[Kind, ...] = KINDS  # Kinds of documents, equally likely. A kind named twice is twice as likely.
    # Lengths of documents in tokens. Each batch draws one of them for all of its documents, and a row holds as many as
    # fit. (): every document draws its own length between min_len and max_len.
    lengths: tuple[Length, ...] = ()
    min_len: Length = 32  # Fewest tokens of a document, without `lengths`.
    max_len: Length | None = None  # Most tokens of a document, without `lengths`. None is seq_len.
    answer_weight: Weight = 1.0  # Weight of answer tokens in the loss.
    # Weight of tokens that cannot be predicted: keys and values where they first appear, and the key in a question.
    drawn_weight: Weight = 0.0
    text_weight: Weight = 1.0  # Weight of all other tokens.


@dataclass(frozen=True)
class SourceConfig:
    """One part of the mixture. Only synthetic documents have no path."""

    # What `path` names: text files, JSON lines, Parquet files, a dataset of tensorflow-datasets; or "synthetic"
    # retrieval documents, which have no path.
    kind: Literal["tfds", "text", "jsonl", "parquet", "synthetic"]
    path: str = ""  # A file, a folder, or a pattern (`books/*.txt`). For "tfds", the folder of a prepared dataset.
    weight: Annotated[float, Bound(0.0, above=True)] = 1.0  # Share of the rows that come from this source, in any unit.
    synthetic: SyntheticConfig | None = None  # Keys of synthetic documents.
    # Each line of jsonl, or row of parquet, holds a conversation. The tokenizer's chat template renders it as text, and
    # the loss is on the assistant's tokens only.
    conversations: bool = False
    # Leaves out documents with fewer tokens. The begin and end tokens of a document count.
    min_tokens: Tokens | None = None
    max_tokens: Tokens | None = None  # Leaves out documents with more tokens.
    # Documents with at least this many tokens are read long_times times in each epoch, all others once.
    long_tokens: Tokens | None = None
    long_times: Annotated[int, Bound(1, high=1000)] | None = None  # How often long documents are read in each epoch.


@dataclass(frozen=True)
class StageConfig:
    """One stage of a curriculum."""

    sources: tuple[SourceConfig, ...]  # The mixture of this stage.
    # Step at which the next stage begins. The last stage has None: it lasts to the end of the run.
    until: Annotated[int, Bound(1)] | None = None


@dataclass(frozen=True)
class DataConfig:
    """What a run reads; docs/data.md explains it.

    With `across_documents` a row is one segment with positions 0, 1, ... seq_len - 1: no mask separates documents. The
    loss is the same as without it: the last token of a document has no target.
    """

    seq_len: Length  # Tokens of a row.
    batch_size: Annotated[int, Bound(1, high=MOST)]  # Rows per step, over all devices and processes.
    sources: tuple[SourceConfig, ...] = ()  # One mixture for all steps.
    # In place of `sources`: mixtures one after the other. Which one a step reads depends on the step alone.
    stages: tuple[StageConfig, ...] = ()
    seed: Annotated[int, Bound(0)] = 0  # Seed of the document order and of all random draws.
    # "concat" cuts rows from concatenated documents; "document" cuts a document only if it is longer than a row.
    packing: Packing = "concat"
    # Attention and positions continue across all documents of a row. False keeps documents apart: a token attends only
    # to its own document, and positions count from that document's start.
    across_documents: bool = False
    # In place of packed rows: each row holds separated stretches of one document (PoSE, CREAM).
    skip: SkipConfig | None = None
    # Folder of the token cache. "" is $GIRAFFE_CACHE, else giraffe-jax in $XDG_CACHE_HOME or ~/.cache. It may be
    # deleted whenever no run is starting.
    cache_dir: str = ""
    prefetch: Annotated[int, Bound(1, high=1024)] = 4  # Batches that are prepared ahead.

    def __post_init__(self):
        if self.batch_size * self.seq_len > MOST:
            raise ConfigError(
                f"data.batch_size: {self.batch_size} rows of data.seq_len {self.seq_len} are "
                f"{self.batch_size * self.seq_len:,} tokens; a batch has at most {MOST:,}."
            )
