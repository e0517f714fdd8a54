"""The config of a training run, and checks of keys that contradict each other, the model or the mesh."""

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
    """One training run. `data`, `steps`, and `source` or a complete `model` are required; all else has a default."""

    data: DataConfig  # What is read: one mixture of sources, or a curriculum of them.
    steps: Annotated[int, Bound(1, high=MOST)]  # Optimizer steps of the whole run.
    # Weights to start from: a Hugging Face directory, a .gguf file, a packaged model's name, a workdir, or one of its
    # checkpoints ("runs/a@1000", "runs/a@best"). "" trains from random weights; then `model` must be complete.
    source: str = ""
    # Directory of the base model, if the source is a PEFT adapter and the base that it names does not exist here.
    base: str | None = None
    # Keys of ModelConfig: all of them without a source, else those that differ from the source's.
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""  # File or directory of a tokenizer. "" takes the source's.
    optim: OptimConfig = OptimConfig()  # Optimizer and learning rate.
    lora: LoraConfig | None = None  # Low-rank adapters on a frozen source. None trains all weights.
    # Trains the rotary frequencies, with the weights or alone. None keeps those of the position methods.
    frequencies: FrequencyConfig | None = None
    mesh: MeshConfig = MeshConfig()  # The device mesh: over how many devices data, parameters and rows are sharded.
    # Gradient accumulation: micro-batches per step, of batch_size / accumulate rows each.
    accumulate: Annotated[int, Bound(1)] = 1
    # Weight of the squared log-sum-exp of the logits in the loss (PaLM's z-loss). 0 leaves it out.
    z_loss: Annotated[float, Bound(0.0)] = 0.0
    loss_chunk: Annotated[int, Bound(1)] = 1024  # Tokens of a row whose logits are in memory at once.
    # Seed of initial weights, adapters and randomised positions. The data has its own, data.seed.
    seed: Annotated[int, Bound(0, high=MOST)] = 0
    save_every: Annotated[int, Bound(1)] = 500  # Steps between checkpoints. The last step is always saved.
    # How many of the latest checkpoints are kept. The one with the lowest eval_loss is kept too.
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
                "config.optim: muon_lr and weight_decay act on kernels, which config.frequencies.train='alone' freezes."
            )


def check(config: TrainConfig, model: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError for keys that the model or the mesh does not allow."""
    _check_skip(config, model)
    _check_dtype(config, model)
    _check_rank(config, model)
    _check_mesh(config, mesh)


def _check_mesh(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    parts, context = math.prod(mesh.shape[a] for a in ("data", "fsdp")), mesh.shape["context"]
    rows = config.data.batch_size // config.accumulate
    if rows % parts:
        raise ConfigError(f"mesh: data x fsdp does not divide a micro-batch of {rows}.")
    eval_data = config.eval_data
    if eval_data is not None and eval_data.batch_size % parts:
        raise ConfigError(f"mesh: data x fsdp = {parts} does not divide eval_data.batch_size {eval_data.batch_size}.")
    for name, data in (("data", config.data), ("eval_data", eval_data)):
        if data is not None and data.seq_len % context:
            raise ConfigError(f"mesh: context={context} does not divide {name}.seq_len {data.seq_len}.")


def _check_skip(config: TrainConfig, model: ModelConfig) -> None:
    drawing = [str(p["name"]) for p in model.positions if p["name"] in header.DRAWN]
    if config.data.skip is not None and drawing:
        raise ConfigError(
            f"config.data.skip: its rows carry their own positions, which {drawing[0]} would draw again. Remove one of "
            "the two."
        )


def _check_dtype(config: TrainConfig, model: ModelConfig) -> None:
    frozen = config.lora is not None or (config.frequencies is not None and config.frequencies.train == "alone")
    if model.param_dtype != "float32" and not frozen:
        raise ConfigError(
            f"config.model.param_dtype: got {model.param_dtype!r}, which is for frozen weights (config.lora, or "
            "frequencies alone): updates at a learning rate of 2e-5 would be lost in rounding. Trained weights must be "
            "'float32'; to compute in bfloat16 set config.model.dtype."
        )


def _check_rank(config: TrainConfig, model: ModelConfig) -> None:
    if config.lora is not None and config.lora.rank > model.d_model:
        raise ConfigError(
            f"config.lora.rank: must be <= {model.d_model}, the model's d_model, got {config.lora.rank}: adapters "
            "would be larger than what they adapt."
        )
