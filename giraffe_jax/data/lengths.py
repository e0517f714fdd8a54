"""Which documents of a source are in an epoch: filtered by length, with long documents repeated.

ProLong (arXiv:2410.02660) and Fu et al. (arXiv:2402.10171) upsample long documents within a source, which does not
change the mixture of domains. The list depends only on the config and the documents' lengths, and an epoch is one pass
over it, so a run can resume after any step.
"""

import numpy as np
from jaxtyping import Int

from giraffe_jax.config import ConfigError
from giraffe_jax.data.config import SourceConfig
from giraffe_jax.data.source import Tokens


def of_epoch(tokens: Tokens, source: SourceConfig, where: str) -> Int[np.ndarray, " documents"]:
    """Returns the indices of an epoch's documents: all that are within the length limits, in order, then the long ones
    again, `long_times` - 1 times.

    Raises ConfigError, naming `where` and the shortest and longest length, if no document is within the limits.
    """
    kept = np.flatnonzero(_within(tokens, source))
    if not kept.size:
        raise ConfigError(
            f"{where}: no document has {_asked(source)} tokens; those of {source.path} have {tokens.sizes.min():,} to "
            f"{tokens.longest:,}"
        )
    return np.concatenate([kept, np.tile(_long(tokens, source, kept), (source.long_times or 1) - 1)])


def described(tokens: Tokens, source: SourceConfig, where: str) -> list[str]:
    """Returns one line for each effect of a source's length and conversation keys on its documents; [] without them."""
    lines, sizes, within = [], tokens.sizes, _within(tokens, source)
    kept = np.flatnonzero(within)
    if source.min_tokens is not None or source.max_tokens is not None:
        lines.append(
            f"{where}: documents of {_asked(source)} tokens; {np.sum(~within):,} of {len(sizes):,} documents are left "
            f"out, with {sizes[~within].sum():,} of {sizes.sum():,} tokens"
        )
    if source.long_tokens is not None and source.long_times is not None:
        long = _long(tokens, source, kept)
        once, repeated = int(sizes[kept].sum()), source.long_times * int(sizes[long].sum())
        total = once + repeated - int(sizes[long].sum())
        lines.append(
            f"{where}: {len(long):,} of {len(kept):,} documents have {source.long_tokens:,} tokens or more and come "
            f"{source.long_times:,} times in an epoch: {100 * repeated / total:.3g}% of its {total:,} tokens"
        )
    if tokens.answers is not None:
        chats = "1 conversation" if len(sizes) == 1 else f"{len(sizes):,} conversations"
        on = f"{np.count_nonzero(tokens.answers):,} of {sizes.sum():,} tokens of {chats}"
        lines.append(f"{where}: the loss is on answers alone, {on}")
    return lines


def check(source: SourceConfig, where: str) -> None:
    """Raises ConfigError for lengths that contradict each other, or that synthetic documents do not read."""
    if source.kind == "synthetic":
        for key in ("min_tokens", "max_tokens", "long_tokens"):
            if getattr(source, key) is not None:
                raise ConfigError(f"{where}.{key}: not read by kind 'synthetic'; use synthetic.min_len and .max_len")
    if source.min_tokens and source.max_tokens and source.min_tokens > source.max_tokens:
        raise ConfigError(f"{where}.max_tokens: got {source.max_tokens}, less than min_tokens {source.min_tokens}")
    if (source.long_tokens is None) != (source.long_times is None):
        given, lacks = ("long_tokens", "long_times") if source.long_times is None else ("long_times", "long_tokens")
        raise ConfigError(f"{where}.{given}: got {getattr(source, given)}, but no {lacks}; the two go together")


def _within(tokens: Tokens, source: SourceConfig) -> np.ndarray:
    sizes = tokens.sizes
    return (sizes >= (source.min_tokens or 0)) & (sizes <= (source.max_tokens or tokens.longest))


def _long(tokens: Tokens, source: SourceConfig, documents: np.ndarray) -> np.ndarray:
    return documents[:0] if source.long_tokens is None else documents[tokens.sizes[documents] >= source.long_tokens]


def _asked(source: SourceConfig) -> str:
    least = f"{source.min_tokens or 1:,}"
    return f"{least} or more" if source.max_tokens is None else f"{least} to {source.max_tokens:,}"
