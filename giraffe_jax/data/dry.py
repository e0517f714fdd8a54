"""A data config checked without reading its documents: every key, and of what it names what is here."""

from typing import Any

from giraffe_jax.data import pipeline
from giraffe_jax.data.files import source_files
from giraffe_jax.data.pipeline import DataConfig, SyntheticConfig, SyntheticRows


def dry_run(config: DataConfig, tokenizer: Any, where: str) -> list[str]:
    """Returns what is not here and so was not checked, a line each.

    Args:
      tokenizer: None where it is not here; synthetic documents are made by it.
      where: the config's own key, "data" say.

    Raises:
      ConfigError: what `make_pipeline` would refuse before it reads a document.
    """
    pipeline._check(config, (0, 1))
    missing = []
    named = [(f"{where}.sources[{i}]", source) for i, source in enumerate(config.sources)]
    for number, stage in enumerate(config.stages):
        named += [(f"{where}.stages[{number}].sources[{i}]", source) for i, source in enumerate(stage.sources)]
    for name, source in named:
        if source.kind != "synthetic":
            try:
                source_files(source.kind, source.path, name)
            except FileNotFoundError:
                missing.append(f"{name}.path: {source.path} is not here.")
        elif tokenizer is not None:
            SyntheticRows(source.synthetic or SyntheticConfig(), tokenizer, config.seq_len, (config.seed, 0))
    return missing
