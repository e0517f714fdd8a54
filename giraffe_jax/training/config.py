"""A training's config, and what in it cannot go together."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax

from giraffe_jax.config import Bound, ConfigError, check_fields
from giraffe_jax.data.config import DataConfig
from giraffe_jax.model import ModelConfig
from giraffe_jax.model.lora import LoraConfig
from giraffe_jax.sharding import MeshConfig
from giraffe_jax.training import header
from giraffe_jax.training.optim import FrequencyConfig, OptimConfig

MOST = 2**31 - 1  # steps are counted in int32


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. `source` or a full `model` says what is trained; everything else has a default but the data."""

    data: DataConfig  # What is read: one mixture of sources, or a curriculum of them.
    steps: Annotated[int, Bound(1, high=MOST)]  # Optimizer steps of the whole run.
    # Weights to start from: a Hugging Face directory, a .gguf file, a packaged model's name, a workdir, or one of its
    # checkpoints ("runs/a@1000", "runs/a@best"). "" trains from random weights; then `model` must be complete.
    source: str = ""
    # Directory of the base model, where the source is an adapter of PEFT that names no directory that is here.
    base: str | None = None
    # Keys of ModelConfig: all of them without a source, else those that differ from the source's.
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""  # File or directory of a tokenizer. "" takes the source's.
    optim: OptimConfig = OptimConfig()  # Optimizer and learning rate.
    lora: LoraConfig | None = None  # Low-rank adapters on a frozen source. None trains all weights.
    # Trains the rotary frequencies too, or nothing else. None keeps them as the position methods made them.
    frequencies: FrequencyConfig | None = None
    mesh: MeshConfig = MeshConfig()  # How devices share the work.
    # Micro-batches of a step: batch_size / accumulate rows are in memory at once.
    accumulate: Annotated[int, Bound(1)] = 1
    # Weight of the squared log-sum-exp of the logits in the loss (PaLM's z-loss). 0 leaves it out.
    z_loss: Annotated[float, Bound(0.0)] = 0.0
    loss_chunk: Annotated[int, Bound(1)] = 1024  # Tokens of a row whose logits are in memory at once.
    # Of initial weights, adapters and randomised positions. data.seed is that of the order of the data.
    seed: Annotated[int, Bound(0, high=MOST)] = 0
    save_every: Annotated[int, Bound(1)] = 500  # Steps between checkpoints. The last step is always saved.
    # Checkpoints that are kept, the latest ones. The best by eval_loss is kept beside them.
    keep: Annotated[int, Bound(1)] = 2
    # Held-out data. Without it no eval_loss is measured, and there is no best checkpoint.
    eval_data: DataConfig | None = None
    eval_every: Annotated[int, Bound(1)] = 500  # Steps between measurements of eval_loss.
    eval_batches: Annotated[int, Bound(1)] = 8  # Batches of eval_data that a measurement reads, always the same ones.

    def __post_init__(self):
        check_fields(self, "config")
        if self.data.batch_size % self.accumulate:
            raise ConfigError(f"config.accumulate {self.accumulate} does not divide batch_size {self.data.batch_size}.")
        alone = self.frequencies is not None and self.frequencies.train == "alone"
        if alone and (self.optim.muon_lr is not None or self.optim.weight_decay):
            raise ConfigError(
                "config.optim: muon_lr and weight_decay are for kernels; none moves with frequencies alone."
            )


def check(config: TrainConfig, model: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError for what a config asks of a model or a mesh that cannot be."""
    _check_skip(config, model)
    _check_dtype(config, model)
    _check_rank(config, model)
    rows = config.data.batch_size // config.accumulate
    if rows % math.prod(mesh.shape[a] for a in ("data", "fsdp")):
        raise ConfigError(f"mesh: data x fsdp does not divide a micro-batch of {rows}.")


def _check_skip(config: TrainConfig, model: ModelConfig) -> None:
    moved = [str(p["name"]) for p in model.positions if p["name"] in header.DRAWN]
    if config.data.skip is not None and moved:
        raise ConfigError(
            f"config.data.skip: its rows come with their positions, which {moved[0]} would draw once more."
        )


def _check_dtype(config: TrainConfig, model: ModelConfig) -> None:
    frozen = config.lora is not None or (config.frequencies is not None and config.frequencies.train == "alone")
    if model.param_dtype != "float32" and not frozen:
        raise ConfigError(
            f"config.model.param_dtype: got {model.param_dtype!r}, which is for weights that do not move (config.lora, "
            "or frequencies alone): a step of 2e-5 is less than its rounding. Weights that are trained are 'float32'; "
            "to compute in bfloat16 set config.model.dtype."
        )


def _check_rank(config: TrainConfig, model: ModelConfig) -> None:
    if config.lora is not None and config.lora.rank > model.d_model:
        raise ConfigError(
            f"config.lora.rank: must be <= {model.d_model}, the model's d_model, got {config.lora.rank}: adapters "
            "would be larger than what they adapt."
        )
