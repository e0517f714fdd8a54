"""Checks a data config without reading its documents: every key, and whether its files exist."""

from typing import Any

from giraffe_jax.data import lengths, pipeline
from giraffe_jax.data.config import SourceConfig
from giraffe_jax.data.files import source_files
from giraffe_jax.data.pipeline import DataConfig, SyntheticConfig, SyntheticRows
from giraffe_jax.data.source import load_tokens
from giraffe_jax.tokenizer import chat


def dry_run(config: DataConfig, tokenizer: Any, where: str) -> list[str]:
    """Checks a data config; returns one line for each path that does not exist here and so was not checked.

    Args:
      tokenizer: None if it is not available; then synthetic sources and chat templates are not checked.
      where: the key of this config, such as "data", for messages.

    Raises:
      ConfigError: what `make_pipeline` would reject before it reads a document.
    """
    pipeline._check(config, (0, 1))
    missing = []
    for name, source in _named(config, where):
        if source.conversations and tokenizer is not None:
            chat.template_of(tokenizer, name)
        if source.kind != "synthetic":
            try:
                source_files(source.kind, source.path, name)
            except FileNotFoundError:
                missing.append(f"{name}.path: {source.path} is not here.")
        elif tokenizer is not None:
            SyntheticRows(source.synthetic or SyntheticConfig(), tokenizer, config.seq_len, (config.seed, 0))
    return missing


def described(config: DataConfig, tokenizer: Any, where: str) -> list[str]:
    """Returns the lines that a run would print about the lengths and conversations of those sources that exist here.

    Only sources with such keys are read. Their tokens are kept in the token cache, where the run finds them.
    """
    lines = []
    for name, source in _named(config, where):
        configured = any(getattr(source, key) != value for key, value in pipeline.LATER.items())
        if source.kind == "synthetic" or not configured:
            continue
        try:
            tokens, _ = load_tokens(
                source.kind, source.path, tokenizer, config.cache_dir, name, conversations=source.conversations
            )
        except FileNotFoundError:  # `dry_run` reports it
            continue
        lengths.of_epoch(tokens, source, name)
        lines += lengths.described(tokens, source, name)
    return lines


def _named(config: DataConfig, where: str) -> list[tuple[str, SourceConfig]]:
    named = [(f"{where}.sources[{i}]", source) for i, source in enumerate(config.sources)]
    for number, stage in enumerate(config.stages):
        named += [(f"{where}.stages[{number}].sources[{i}]", source) for i, source in enumerate(stage.sources)]
    return named
