"""Data: long documents and synthetic retrieval documents -> packed batches, a pure function of (config, step)."""

from giraffe_jax.data.config import DataConfig, SourceConfig, StageConfig, SyntheticConfig
from giraffe_jax.data.pipeline import Pipeline, make_pipeline
from giraffe_jax.data.skip import SkipConfig

__all__ = ["DataConfig", "Pipeline", "SkipConfig", "SourceConfig", "StageConfig", "SyntheticConfig", "make_pipeline"]
