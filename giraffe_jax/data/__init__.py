"""Data: long documents and synthetic retrieval documents -> packed batches, a pure function of (config, step)."""

from giraffe_jax.data.pipeline import DataConfig, Pipeline, SourceConfig, SyntheticConfig, make_pipeline

__all__ = ["DataConfig", "Pipeline", "SourceConfig", "SyntheticConfig", "make_pipeline"]
