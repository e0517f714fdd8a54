"""What a run prints before its first step: its settings, its data, and warnings about what it cannot learn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from giraffe_jax.attention.engine import described
from giraffe_jax.data.config import DataConfig
from giraffe_jax.model import ModelConfig, lora
from giraffe_jax.ops.choose import choose
from giraffe_jax.positions import largest_factor
from giraffe_jax.training.optim import OptimConfig
from giraffe_jax.training.step import trainable

DRAWN = ("cream", "pose", "randomize")  # methods that draw the positions of training tokens at random


def header(config: Any, model: ModelConfig, params: Any, mesh: Any, workdir: str | Path, step: int) -> str:
    """Returns the header of a run: weights, trained parameters, positions, attention, mesh, batch, and first step.

    Args:
      params: the parameters of the run's state, arrays or shapes.
      step: the checkpoint that the run resumes from; 0 is a new run.
    """
    moving, _ = lora.split(params, trainable(params, config.lora, config.frequencies))
    groups = lora.by_group(moving)
    parts = ", ".join(f"{group} {lora.count_in_words(count)}" for group, count in groups.items())
    rows, tokens = config.data.batch_size, config.data.seq_len
    methods = ", ".join(str(p["name"]) for p in model.positions) or "plain RoPE"
    with jax.set_mesh(mesh):
        kernels = f"{described(model, batch=rows // config.accumulate, tokens=tokens)}; {choose()}"
    devices = mesh.devices.flat[0].device_kind
    begin = "the start" if step == 0 else f"checkpoint {step}"
    progress = f"{config.steps - step:,} steps to {config.steps:,}, from {begin}"
    if step >= config.steps:
        progress = f"all {config.steps:,} steps are done: nothing is left to train"
    lines = {
        "source": f"{config.source or 'random weights'}, {sum(x.size for x in jax.tree.leaves(params)):,} "
        f"parameters, computed in {model.dtype}, matmuls at {model.precision} precision",
        "trained": f"{sum(groups.values()):,} parameters: {parts}",
        "positions": f"{methods}, trained to {model.original_len:,} before",
        "attention": kernels,
        "mesh": " ".join(f"{axis}={size}" for axis, size in mesh.shape.items()) + f", {mesh.size} x {devices}",
        "batch": f"{rows:,} x {tokens:,} = {rows * tokens:,} tokens a step"
        + (f", in {config.accumulate} parts" if config.accumulate > 1 else "")
        + ("; attention and positions run on across the documents of a row" if config.data.across_documents else ""),
        str(workdir): progress,
    }
    texts = [f"{name}: {text}" for name, text in lines.items()]
    return "\n".join([*texts, *filter(None, [warm_up(config.optim, config.steps)])])


def warm_up(optim: OptimConfig, steps: int) -> str:
    """Returns a warning if the run ends before the warm-up of the learning rate, else ""."""
    if optim.warmup_steps < steps:
        return ""
    return (
        f"warning: optim.warmup_steps {optim.warmup_steps:,} is not less than steps {steps:,}: the run ends before the "
        "warm-up of the learning rate does."
    )


def of_data(batch: Mapping[str, np.ndarray], longest: int, data: DataConfig, model: ModelConfig, anew: bool) -> str:
    """Returns a line about the data of a run, and a warning if nothing in it is longer than the original context.

    Args:
      batch: the first one, for the documents per row and the share of tokens beyond the original context.
      longest: tokens of the longest document of all sources.
      anew: the model starts from random weights, so position methods alone do not mean that a context is extended.
    """
    real = batch["segments"] > 0
    per_row = float(batch["segments"].max(axis=1).mean())  # segments count from 1 in each row
    packed = "rows run across documents" if data.across_documents else f"{per_row:.3g} documents a row"
    beyond = float(np.mean(batch["positions"][real] >= model.original_len)) if real.any() else 0.0
    share = "<0.1%" if 0 < beyond < 0.0005 else f"{100 * beyond:.3g}%"
    drawn = next((str(p["name"]) for p in model.positions if p["name"] in DRAWN), None)
    where = f"positions are drawn by {drawn}"
    if drawn is None:
        where = f"{share} of its tokens at positions beyond the trained {model.original_len:,}"
    line = f"data: longest document {longest:,} tokens; in the first batch {packed}, {where}"
    furthest = min(longest, data.seq_len) if data.skip is None else data.skip.target_len
    furthest = data.seq_len if data.across_documents else furthest
    extends = data.seq_len > model.original_len or largest_factor(model.positions) > 1
    extends = extends or bool(model.positions and not anew)
    if drawn is not None or not extends or furthest > model.original_len:
        return line
    short = f"data.seq_len is {data.seq_len:,}" if longest >= data.seq_len else f"the longest document has {longest:,}"
    methods = ", ".join(str(p["name"]) for p in model.positions) or "plain RoPE"
    return (
        f"{line}\nwarning: no token is at a position beyond the trained {model.original_len:,}: {short} tokens, so "
        f"{methods} will learn nothing about longer contexts; take longer documents"
        + (" and a longer data.seq_len." if longest >= data.seq_len else ".")
    )


def padding(batch: Mapping[str, np.ndarray], data: DataConfig) -> str:
    """Returns a warning if more than half of a batch is padding, else ""."""
    share = float(np.mean(batch["segments"] == 0))
    return (
        ""
        if share <= 0.5
        else (
            f"warning: {share:.0%} of the first batch is padding, which is wasted compute: documents are short for "
            f'data.seq_len {data.seq_len:,}. data.packing="concat" fills rows; so does a shorter seq_len.'
        )
    )
