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
    """One part of the mixture; `weight` is its share of the rows (any unit). Only synthetic documents have no path.

    conversations: each line of jsonl, or row of parquet, holds a conversation (data/conversations.py) in place of a
      text. The tokenizer's chat template writes it out, and the loss is on the assistant's tokens alone.
    min_tokens, max_tokens: documents with fewer or more tokens are left out; both ends are kept. Tokens that begin and
      end a document count.
    long_tokens, long_times: a document of at least long_tokens tokens comes long_times times in each epoch, any other
      once (data/lengths.py).
    """

    kind: Literal["tfds", "text", "jsonl", "parquet", "synthetic"]
    path: str = ""
    weight: Annotated[float, Bound(0.0, above=True)] = 1.0
    synthetic: SyntheticConfig | None = None
    conversations: bool = False
    min_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    long_tokens: Tokens | None = None
    long_times: Annotated[int, Bound(1, high=1000)] | None = None


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

    A token attends to its own document alone, and positions count from the document's start. With `across_documents`
    both run on over all documents of a row, as where documents are joined without a mask: its segments are all 1 and
    its positions 0, 1, ... seq_len - 1. The loss is the same: the last token of a document has no target.
    """

    seq_len: Length
    batch_size: Annotated[int, Bound(1, high=MOST)]
    sources: tuple[SourceConfig, ...] = ()
    stages: tuple[StageConfig, ...] = ()
    seed: Annotated[int, Bound(0)] = 0
    packing: Packing = "concat"
    across_documents: bool = False
    skip: SkipConfig | None = None
    cache_dir: str = ""
    prefetch: Annotated[int, Bound(1, high=1024)] = 4  # batches made ahead of time

    def __post_init__(self):
        if self.batch_size * self.seq_len > MOST:
            raise ConfigError(
                f"data.batch_size: {self.batch_size} rows of data.seq_len {self.seq_len} are "
                f"{self.batch_size * self.seq_len:,} tokens; a batch has at most {MOST:,}."
            )
