"""The config of an experiment: its variants and tasks."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from giraffe_jax import evals, positions
from giraffe_jax.config import Bound, ConfigError, build, to_dict

EMPTY: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A choice of position methods, evaluated without training or after training with them."""

    name: str  # Its name in tables and plots. Names must differ.
    # Position methods of training, and of evaluation unless eval_positions is given.
    positions: tuple[Mapping[str, Any], ...] = ()
    # Position methods of evaluation, if they differ from those of training.
    eval_positions: tuple[Mapping[str, Any], ...] | None = None
    # Keys of TrainConfig without source, model and positions. None evaluates the source without training. Variants
    # with the same positions and training share one run, and each is evaluated with its own eval_positions.
    train: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """An experiment: a question, the weights, and the variants and tasks that answer it."""

    name: str  # Of the experiment, and of its default workdir, runs/NAME.
    source: str  # Weights: anything that TrainConfig.source accepts.
    variants: tuple[Variant, ...]  # What is compared.
    tasks: tuple[Mapping[str, Any], ...]  # What is measured: [dict(name="passkey", lengths=[512, 1024]), ...].
    # Directory of the base model, if the source is a PEFT adapter whose own base path does not exist here.
    base: str | None = None
    title: str = ""  # Heading of the report.
    question: str = ""  # What the experiment asks, as the report's first paragraph.
    # Keys of ModelConfig that differ from the source's.
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Pretraining context of the source, in tokens, if its config does not give it.
    original_len: Annotated[int, Bound(1, high=2**31 - 1)] | None = None
    tokens_per_batch: Annotated[int, Bound(1, high=2**31 - 1)] = 8192  # Tokens of one forward pass of the evaluation.
    # Each variant is trained, and each task with random examples is evaluated, once per seed. A seed is added to the
    # training's own (seed and data.seed) and to the task's.
    seeds: tuple[Annotated[int, Bound(0)], ...] = (0,)

    def __post_init__(self):
        for field in ("variants", "tasks", "seeds"):
            if not getattr(self, field):
                raise ConfigError(f"config.{field}: the list is empty.")
        names = [v.name for v in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"config.variants: {names.count(name)} are called {name!r}; names must differ.")
        if "positions" in self.model:
            raise ConfigError("config.model.positions: set by each variant's own positions, not here.")

    @property
    def overrides(self) -> dict[str, Any]:
        """The ModelConfig keys that differ from the source's, original_len included."""
        model = to_dict(self.model)
        return model if self.original_len is None else model | {"original_len": self.original_len}


def check(config: ExperimentConfig) -> list[Any]:
    """Returns the built tasks, after checking everything that can be checked without a device.

    Raises:
      ConfigError: naming the first wrong key.
    """
    tasks = [evals.build(dict(task), f"config.tasks[{i}]") for i, task in enumerate(config.tasks)]
    from giraffe_jax.evals import cases
    from giraffe_jax.evals.run import check_labels

    check_labels(tasks)
    for task in tasks:
        cases.present(task)
    for i, variant in enumerate(config.variants):
        positions.check(variant.positions, f"config.variants[{i}].positions")
        if variant.eval_positions is not None:
            positions.check(variant.eval_positions, f"config.variants[{i}].eval_positions")
        if variant.train is not None:
            train_config(config, variant, config.seeds[0], where=f"config.variants[{i}].train")
    return tasks


def train_config(config: ExperimentConfig, variant: Variant, seed: int, *, where: str = "train") -> Any:
    """Returns the TrainConfig of a variant: its own keys, with the experiment's source and model.

    Raises:
      ConfigError: at `where`, for an unknown key or one that belongs to the experiment.
    """
    from giraffe_jax.training.config import TrainConfig

    values = to_dict(variant.train or EMPTY)
    forbidden = [key for key in ("source", "base", "model") if key in values]
    if forbidden:
        raise ConfigError(f"{where}: {forbidden} are the experiment's own; set them once, beside the variants.")
    model = config.overrides | {"positions": variant.positions}
    merged = {"source": config.source, "base": config.base, "model": model} | values
    if seed and isinstance(data := values.get("data"), Mapping):  # else all seeds train on the same batches
        merged["data"] = {**data, "seed": data.get("seed", 0) + seed}
    return build(TrainConfig, merged | {"seed": values.get("seed", 0) + seed}, where)


def trainings(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the TrainConfig of each trained variant, for the first seed, by the variant's name."""
    return {v.name: train_config(config, v, config.seeds[0]) for v in config.variants if v.train is not None}


def check_bound(config: ExperimentConfig, pairs: Iterable[tuple[Variant, int]], model: Any) -> None:
    """Checks, before anything is measured, that the model can use each variant's methods at each length.

    Args:
      config: the experiment.
      pairs: (variant, length in tokens).
      model: ModelConfig of the source.

    Raises:
      ConfigError: naming the first variant and length that do not work.
    """
    seen = set()
    for variant, length in pairs:
        if (variant.name, length) in seen:
            continue
        seen.add((variant.name, length))
        where = f"config.variants[{config.variants.index(variant)}]"
        read = "positions" if variant.eval_positions is None else "eval_positions"
        try:
            model.bind(length, scaling=read_with(variant), where=f"{where}.{read}")
            model.bind(scaling=variant.positions, where=f"{where}.positions")  # in training
        except ConfigError as error:
            raise ConfigError(f"{error} That is {variant.name!r} at {length:,} tokens.") from None


def read_with(variant: Variant) -> tuple[Mapping[str, Any], ...]:
    """Returns the position methods that a variant is evaluated with."""
    return variant.positions if variant.eval_positions is None else variant.eval_positions


def message(error: Exception) -> str:
    """Returns an error's type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
