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
    """Retrieval documents (giraffe_jax/data/synthetic.py), several to a row."""

    kinds: tuple[Kind, ...] = KINDS  # Kinds of documents, each as likely. A kind named twice is twice as likely.
    # Tokens of a document. Each batch draws one of them for all of its documents, and a row holds as many as fit. ():
    # every document draws its own length between min_len and max_len.
    lengths: tuple[Length, ...] = ()
    min_len: Length = 32  # Least tokens of a document, without `lengths`.
    max_len: Length | None = None  # Most tokens of a document, without `lengths`. None is the row.
    answer_weight: Weight = 1.0  # Weight of answers in the loss.
    # Weight of what nothing predicts: keys and values where they first stand, and the key that is asked for.
    drawn_weight: Weight = 0.0
    text_weight: Weight = 1.0  # Weight of everything else.


@dataclass(frozen=True)
class SourceConfig:
    """One part of the mixture. Only synthetic documents have no path."""

    # What `path` names: text files, JSON lines, Parquet files, a dataset of tensorflow-datasets; or "synthetic"
    # retrieval documents, which have no path.
    kind: Literal["tfds", "text", "jsonl", "parquet", "synthetic"]
    path: str = ""  # A file, a folder, or a pattern (`books/*.txt`). Of tfds the dataset's name.
    weight: Annotated[float, Bound(0.0, above=True)] = 1.0  # Share of the rows that come from this source, in any unit.
    synthetic: SyntheticConfig | None = None  # Keys of synthetic documents.
    # Each line of jsonl, or row of parquet, holds a conversation. The tokenizer's chat template writes it out, and the
    # loss is on the assistant's tokens alone.
    conversations: bool = False
    # Leaves out documents with fewer tokens, those that begin and end a document included.
    min_tokens: Tokens | None = None
    max_tokens: Tokens | None = None  # Leaves out documents with more tokens.
    # Documents of at least so many tokens come long_times times in each epoch, any other once.
    long_tokens: Tokens | None = None
    long_times: Annotated[int, Bound(1, high=1000)] | None = None  # How often long documents come in each epoch.


@dataclass(frozen=True)
class StageConfig:
    """A stretch of a curriculum."""

    sources: tuple[SourceConfig, ...]  # The mixture of this stage.
    # Step at which the next stage begins. None, for the last stage, is the end of the run.
    until: Annotated[int, Bound(1)] | None = None


@dataclass(frozen=True)
class DataConfig:
    """What a run reads; docs/data.md explains it.

    With `across_documents` segments are all 1 and positions 0, 1, ... seq_len - 1, as where documents are joined
    without a mask. The loss is the same: the last token of a document has no target.
    """

    seq_len: Length  # Tokens of a row.
    batch_size: Annotated[int, Bound(1, high=MOST)]  # Rows of a step, of all devices and processes together.
    sources: tuple[SourceConfig, ...] = ()  # One mixture for all steps.
    # In place of `sources`: mixtures one after the other. Which one a step reads depends on the step alone.
    stages: tuple[StageConfig, ...] = ()
    seed: Annotated[int, Bound(0)] = 0  # Of the order of documents, and of what is drawn.
    # "concat" cuts rows from documents laid end to end; "document" cuts a document only where it is longer than a row.
    packing: Packing = "concat"
    # Attention and positions run on over all documents of a row. False keeps documents apart: a token attends to its
    # own document, and positions count from that document's start.
    across_documents: bool = False
    skip: SkipConfig | None = None  # Rows of stretches of one document that lie apart, in place of packed rows.
    # Where tokens are kept between runs. "" is $GIRAFFE_CACHE, else giraffe-jax in $XDG_CACHE_HOME or ~/.cache. It may
    # be deleted whenever no run is starting.
    cache_dir: str = ""
    prefetch: Annotated[int, Bound(1, high=1024)] = 4  # Batches that are made ahead of time.

    def __post_init__(self):
        if self.batch_size * self.seq_len > MOST:
            raise ConfigError(
                f"data.batch_size: {self.batch_size} rows of data.seq_len {self.seq_len} are "
                f"{self.batch_size * self.seq_len:,} tokens; a batch has at most {MOST:,}."
            )
