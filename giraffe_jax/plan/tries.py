"""Searches variations of a planned training: changes that make it fit, and the longest rows that fit.

The caller compiles each variation, in its function `attempt`; at most `tries` of them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from giraffe_jax.data.config import MOST
from giraffe_jax.model import ModelConfig
from giraffe_jax.training.config import TrainConfig

Changes = Mapping[str, Any]  # keys of the training's config -> values: {"model.remat": "full"}
STEP = 1024  # row lengths are multiples of this, in tokens
# From most device memory to least.
_REMAT = ("none", "save_matmuls", "save_attention", "offload_residual", "full", "offload_attention", "offload")
_ENOUGH = 3  # proposals after which the search stops


@dataclasses.dataclass(frozen=True)
class Tried:
    """The result for one variation; if `refused` gives a reason, it was not compiled and the other fields are unset."""

    changes: Changes
    fits: bool
    peak_bytes: int | None = None
    needed_bytes: int | None = None  # if the compiler rejected it as too big
    host_bytes: int | None = None
    model_flops: float | None = None
    executed_flops: float | None = None
    step_seconds_bound: float | None = None
    refused: str | None = None

    @property
    def bytes(self) -> int | None:
        """Device memory that it takes, or that the compiler says it needs; None if unknown."""
        return self.needed_bytes if self.peak_bytes is None else self.peak_bytes


Attempt = Callable[[Changes], Tried]


def candidates(config: TrainConfig, model: ModelConfig, mesh: Mapping[str, int]) -> list[Changes]:
    """Returns single changes that save memory; first those that save much for few additional FLOPs.

    All keep the tokens per step and the chips.
    """
    options: list[Changes] = []
    stronger = _REMAT[_REMAT.index(model.remat) + 1 :]
    options += [{"model.remat": remat} for remat in stronger if not remat.startswith("offload")]
    if mesh["data"] > 1:
        options.append({"mesh.data": 1, "mesh.fsdp": mesh["data"] * mesh["fsdp"]})
    options += _smaller_parts(config, model, mesh)
    if config.optim.mu_dtype == "float32":
        options.append({"optim.mu_dtype": "bfloat16"})
    options += [{"model.remat": remat} for remat in stronger if remat.startswith("offload")]
    tokens = config.data.seq_len // mesh["context"]
    if model.mlp_chunk == 0 and tokens > 2048:
        options.append({"model.mlp_chunk": 2048})
    if min(config.loss_chunk, tokens) > 256:
        options.append({"loss_chunk": 256})
    return options


def _smaller_parts(config: TrainConfig, model: ModelConfig, mesh: Mapping[str, int]) -> list[Changes]:
    """Returns changes that give a device fewer tokens at once, or a smaller part of each."""
    options: list[Changes] = []
    devices = mesh["data"] * mesh["fsdp"]
    device_rows = config.data.batch_size // config.accumulate // devices  # rows of a device in a micro-batch
    divisor = next((n for n in range(2, device_rows + 1) if device_rows % n == 0), None)
    if divisor is not None:
        options += [{"accumulate": config.accumulate * n} for n in dict.fromkeys((divisor, device_rows))]
    for axis, whole in (("context", config.data.seq_len), ("tensor", math.gcd(model.num_kv_heads, model.d_mlp))):
        for times in (4, 2):
            if mesh["fsdp"] % times == 0 and whole % (mesh[axis] * times) == 0:
                sizes = {"mesh.fsdp": mesh["fsdp"] // times, f"mesh.{axis}": mesh[axis] * times}
                # More devices share a row, so each device has more rows at once; more micro-batches undo that.
                options.append(sizes | {"accumulate": config.accumulate * times * device_rows})
                break
    return options


def propose(first: Tried, options: Sequence[Changes], attempt: Attempt, tries: int) -> list[Tried]:
    """Returns the tries made to find a training that fits: single changes first and, if none fits, combinations.

    Args:
      first: the unchanged training, which does not fit.
      options: single changes, from `candidates`.
      attempt: compiles a variation.
      tries: most variations to compile.
    """
    tried: list[Tried] = []
    singles = max(1, tries // 2)
    while len(tried) < min(tries, len(options)) and sum(t.fits for t in tried) < _ENOUGH:
        if len(tried) >= singles and not any(t.fits for t in tried):
            break
        tried.append(attempt(options[len(tried)]))
    if any(t.fits for t in tried):
        return tried
    # Combines changes, those that saved most first, then those not tried alone.
    least = first.bytes
    saving = [t for t in tried if t.bytes is not None and least is not None and t.bytes < least]
    saving.sort(key=lambda t: t.bytes or 0)
    together: dict[str, Any] = {}
    for changes in [*(t.changes for t in saving), *options[len(tried) :]]:
        if together.keys() & changes.keys():
            continue
        if not together and saving:
            together, least = dict(changes), saving[0].bytes
            continue
        if len(tried) == tries:
            break
        tried.append(attempt({**together, **changes}))
        if tried[-1].fits:
            break
        now = tried[-1].bytes
        if now is not None and (least is None or now < least):
            together, least = {**together, **changes}, now
    return tried


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """Returns the tries that fit, sorted by the bound of the step time, then executed FLOPs, then memory."""

    def cost(t: Tried) -> tuple[float, float, float]:
        return t.step_seconds_bound or math.inf, t.executed_flops or math.inf, t.peak_bytes or math.inf

    return sorted((t for t in tried if t.fits), key=cost)


def rows_of(config: TrainConfig, mesh: Mapping[str, int], tokens: int) -> int:
    """Returns how many rows of `tokens` keep the tokens per step of `config`, or the fewest that the mesh takes."""
    unit = mesh["data"] * mesh["fsdp"] * config.accumulate
    return max(config.data.batch_size * config.data.seq_len // tokens // unit, 1) * unit


def longest(
    first: Tried,
    config: TrainConfig,
    mesh: Mapping[str, int],
    attempt: Attempt,
    tries: int,
    *,
    arguments: int,
    hbm: int,
) -> tuple[int | None, int | None, list[Tried]]:
    """Returns (the longest rows found to fit, the shortest found not to fit, the tries), lengths in tokens.

    Activation memory is nearly linear in the tokens per step, so the next length is extrapolated linearly from the last
    try; if that keeps failing, by bisection. With enough tries the two lengths are STEP apart.

    Args:
      first: the unchanged training.
      config: its config.
      mesh: axes and their sizes.
      attempt: compiles a variation.
      tries: most variations to compile.
      arguments: bytes of the step's arguments on a device.
      hbm: bytes of a device's memory.
    """
    unit = mesh["data"] * mesh["fsdp"] * config.accumulate
    most = MOST // unit // STEP * STEP
    start = config.data.seq_len
    fits, fails = (start, None) if first.fits else (None, start)
    size, x, tried = first.bytes, start * config.data.batch_size, []
    streak = 0  # consecutive tries with the same outcome
    while len(tried) < tries:
        low = STEP if fits is None else fits // STEP * STEP + STEP
        high = most if fails is None else (fails - 1) // STEP * STEP
        if low > high:
            break
        if fails is not None and streak >= 2:
            length = (low + high) // 2
        else:
            share = (hbm - arguments) / max(size - arguments, 1) if size is not None else 0.5
            length = int(min(x * share / unit, 8.0 * max(fits or 0, start)))
        length = min(max(length // STEP * STEP, low), high)
        changes = {"data.seq_len": length, "data.batch_size": rows_of(config, mesh, length)}
        now = attempt(changes)
        streak = streak + 1 if tried and tried[-1].fits == now.fits else 1
        tried.append(now)
        if now.fits:
            fits = length
        else:
            fails = length
        if now.bytes is not None and now.bytes > arguments:
            size, x = now.bytes, length * changes["data.batch_size"]
    return fits, fails, tried
