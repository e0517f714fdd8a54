"""A training's step compiled for chips that are not there, and what follows from its numbers and the chips'."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from giraffe_jax import devices, sharding
from giraffe_jax.attention.engine import described
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan import hlo, work
from giraffe_jax.plan.absent import absent_chips
from giraffe_jax.plan.chips import CHIPS, GPUS, Chip, a_node, kind_of
from giraffe_jax.plan.kernels import known_kernels
from giraffe_jax.training import header
from giraffe_jax.training.config import TrainConfig, check
from giraffe_jax.training.program import Program, bytes_per_device, program, state_shapes

_UNITS = dict(zip("BKMGT", (1, 2**10, 2**20, 2**30, 2**40), strict=True))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on each chip or GPU (of tpu7x, on each of a chip's two cores). What only a program that was
    compiled tells is None where the compiler refused it as too big."""

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    seq_len: int
    batch_size: int
    accumulate: int
    fits: bool
    hbm_bytes: int  # of the chip; of one that is too small, what its compiler says is there for a program
    needed_bytes: int | None  # where it does not fit: what the compiler says it needs
    peak_bytes: int | None
    argument_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    temp_bytes: int | None
    host_bytes: int | None  # in the pinned memory of the host, for each device
    model_flops: float
    executed_flops: float | None
    recomputed_flops: float | None
    collective_bytes: dict[str, dict[str, float]] | None  # kind -> mesh axes -> bytes of operands
    sent_bytes: float | None
    between_nodes_bytes: float | None  # part of them: what leaves a node of GPUs, for each of them
    compute_seconds: float | None
    memory_seconds: float | None
    network_seconds: float | None
    step_seconds_bound: float | None
    tokens_per_second: float | None  # of one chip, at that bound
    mfu_bound: float | None
    chip_hours: float | None  # of the whole run, at that bound
    compile_seconds: float
    attention: str
    remat: str
    data_loops: int | None
    uncounted: tuple[str, ...] | None  # kernels that do not say their FLOPs


def plan(
    config: TrainConfig,
    model: ModelConfig,
    topology: str,
    *,
    slices: int = 1,
    document: int | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> Plan:
    """Returns what the step of a training takes on a topology's chips.

    Args:
      model: the whole one, from `training.dry.check_config`.
      topology: as in `absent_chips`.
      document: tokens of the documents that fill each row; None is one document a row.
      say: is told the run's header before the step is compiled.

    Raises:
      ConfigError: a mesh, batch or attention that cannot be on these chips; no libtpu.
    """
    mesh = sharding.make_mesh(config.mesh, absent_chips(topology, slices))
    check(config, model, mesh)
    state, made = state_shapes(config, model, mesh), program(config, model, mesh)
    rows, tokens = config.data.batch_size // config.accumulate, config.data.seq_len
    kind = kind_of(topology)
    with jax.set_mesh(mesh):
        attention = described(model, batch=rows, tokens=tokens)
        capability = devices.capability() if kind in GPUS else None
    say(header.header(config, model, state.params, mesh, "steps", 0))
    chip = CHIPS[kind]
    device = chip.a_device()
    found: dict[str, Any] = dict(
        topology=topology,
        slices=slices,
        chips=mesh.size // chip.per_chip,
        mesh=dict(mesh.shape),
        seq_len=tokens,
        batch_size=config.data.batch_size,
        accumulate=config.accumulate,
        parameter_bytes=bytes_per_device(state.params),
        optimizer_bytes=bytes_per_device(state.opt_state),
        model_flops=work.model_flops(config, model, state.params, document) / mesh.size,
        attention=attention,
        remat=model.remat,
    )
    trips = work.data_trips(model, tokens, document) if attention.startswith("blockwise") else 1.0
    of_kernels = known_kernels(attention, config, model, mesh.shape, document, capability)

    def done(text: str) -> hlo.Counts:
        return hlo.count(text, dict(mesh.shape), trips, of_kernels, a_node(topology))

    return Plan(**found, **_compiled(made, state, device, done, found["model_flops"]))


def _compiled(
    made: Program, state: Any, device: Chip, count: Callable[[str], hlo.Counts], model_flops: float
) -> dict[str, Any]:
    """Returns the fields of a Plan that the compiler has a part in.

    Args:
      count: of the optimised module's text.
    """
    config, mesh = made.config, made.mesh
    began = time.monotonic()
    try:
        compiled = without_cache(made.lower(state))
    except jax.errors.JaxRuntimeError as error:
        needed, there = exhausted(str(error))
        if needed is None:
            raise
        unknown = [field.name for field in dataclasses.fields(Plan) if str(field.type).endswith("| None")]
        return dict.fromkeys(unknown, None) | dict(
            fits=False,
            needed_bytes=needed,
            hbm_bytes=there or device.hbm_bytes,
            argument_bytes=bytes_per_device(state),
            compile_seconds=time.monotonic() - began,
        )
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    done = count(compiled.as_text() or "")
    # At least: every argument read once and every result written once.
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    compute, hbm = done.flops / device.flops, moved / device.hbm_bandwidth
    network = max((done.sent - done.between) / device.network, done.between / device.between)
    bound = max(compute, hbm, network)
    by_kind: dict[str, dict[str, float]] = {}
    for (kind, axes), size in sorted(done.collectives.items()):
        by_kind.setdefault(kind, {})[axes] = size
    tokens = config.data.batch_size * config.data.seq_len
    chips = mesh.size / device.per_chip
    return dict(
        fits=memory.peak_memory_in_bytes <= device.hbm_bytes,
        hbm_bytes=device.hbm_bytes,
        needed_bytes=None,
        peak_bytes=memory.peak_memory_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        host_bytes=memory.host_temp_size_in_bytes
        + memory.host_argument_size_in_bytes
        + memory.host_output_size_in_bytes
        - memory.host_alias_size_in_bytes,
        executed_flops=done.flops,
        recomputed_flops=done.recomputed,
        collective_bytes=by_kind,
        sent_bytes=done.sent,
        between_nodes_bytes=done.between,
        compute_seconds=compute,
        memory_seconds=hbm,
        network_seconds=network,
        step_seconds_bound=bound,
        tokens_per_second=tokens / bound / chips,
        mfu_bound=model_flops / device.flops / bound,
        chip_hours=bound * config.steps * chips / 3600,
        compile_seconds=seconds,
        data_loops=done.data_loops,
        uncounted=done.uncounted,
    )


def without_cache(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns the compiled program; JAX's compilation cache cannot read again what is for chips that are not there."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    compilation_cache.reset_cache()  # which asks once whether it is enabled
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def exhausted(message: str) -> tuple[int | None, int | None]:
    """Returns (bytes a program needs, bytes there are) of the compiler's refusal; (None, None) of another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None, None
    sizes = r"([\d.]+)([BKMGT]?)\S*"
    for pattern in (rf"\({sizes}\) exceeds available HBM \({sizes}\)", rf"Used {sizes} of {sizes} hbm"):
        if (found := re.search(pattern, message)) is not None:
            needed, unit, there, of = found.groups()
            return int(float(needed) * _UNITS[unit or "B"]), int(float(there) * _UNITS[of or "B"])
    return None, None
