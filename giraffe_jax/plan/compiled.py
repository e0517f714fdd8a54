"""Compiles a training step for chips that this machine does not have, and derives its memory, time and cost."""

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
    """What a step takes on each device: a chip, a GPU, or one of the two cores of a tpu7x chip. Fields that need a
    compiled program are None if the compiler rejected it as too big."""

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    seq_len: int
    batch_size: int
    accumulate: int
    fits: bool
    hbm_bytes: int  # memory of the device; if the program was rejected, what the compiler says is available
    needed_bytes: int | None  # if the program was rejected: what the compiler says it needs
    peak_bytes: int | None
    argument_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    temp_bytes: int | None
    host_bytes: int | None  # pinned host memory per device
    model_flops: float
    executed_flops: float | None
    recomputed_flops: float | None
    collective_bytes: dict[str, dict[str, float]] | None  # kind -> mesh axes -> bytes of operands
    sent_bytes: float | None
    between_nodes_bytes: float | None  # the part of sent_bytes that leaves a GPU's node
    compute_seconds: float | None
    memory_seconds: float | None
    network_seconds: float | None
    step_seconds_bound: float | None
    tokens_per_second: float | None  # of one chip, at that bound
    mfu_bound: float | None
    chip_hours: float | None  # for the whole run, at that bound
    compile_seconds: float
    attention: str
    remat: str
    data_loops: int | None
    uncounted: tuple[str, ...] | None  # kernels whose FLOPs are unknown


def plan(
    config: TrainConfig,
    model: ModelConfig,
    topology: str,
    *,
    slices: int = 1,
    document: int | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> Plan:
    """Returns what the training step takes on the chips of a topology.

    Args:
      config: of the training.
      model: the complete ModelConfig, from `training.dry.check_config`.
      topology: as in `absent_chips`.
      slices: as in `absent_chips`.
      document: tokens of each of the documents that fill a row; None: one document per row.
      say: called with the run's header before the step is compiled.

    Raises:
      ConfigError: the mesh, batch or attention is impossible on these chips, or the compiler is not installed.
    """
    mesh = sharding.make_mesh(config.mesh, absent_chips(topology, slices))
    check(config, model, mesh)
    state, step_program = state_shapes(config, model, mesh), program(config, model, mesh)
    rows, tokens = config.data.batch_size // config.accumulate, config.data.seq_len
    kind = kind_of(topology)
    with jax.set_mesh(mesh):
        attention = described(model, batch=rows, tokens=tokens)
        capability = devices.capability() if kind in GPUS else None
    say(header.header(config, model, state.params, mesh, "steps", 0))
    chip = CHIPS[kind]
    device = chip.a_device()
    fields: dict[str, Any] = dict(
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

    return Plan(**fields, **_compiled(step_program, state, device, done, fields["model_flops"]))


def _compiled(
    step_program: Program, state: Any, device: Chip, count: Callable[[str], hlo.Counts], model_flops: float
) -> dict[str, Any]:
    """Returns the fields of a Plan that need the compiler.

    Args:
      step_program: the program of the step.
      state: shapes of its TrainState.
      device: figures of one device.
      count: counts FLOPs and collectives in the text of the optimised module.
      model_flops: per device.
    """
    config, mesh = step_program.config, step_program.mesh
    began = time.monotonic()
    try:
        compiled = without_cache(step_program.lower(state))
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        if needed is None:
            raise
        unknown = [field.name for field in dataclasses.fields(Plan) if str(field.type).endswith("| None")]
        return dict.fromkeys(unknown, None) | dict(
            fits=False,
            needed_bytes=needed,
            hbm_bytes=available or device.hbm_bytes,
            argument_bytes=bytes_per_device(state),
            compile_seconds=time.monotonic() - began,
        )
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    counts = count(compiled.as_text() or "")
    # A lower bound: every argument is read once and every result written once.
    moved_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes
    compute, hbm = counts.flops / device.flops, moved_bytes / device.hbm_bandwidth
    network = max((counts.sent - counts.between) / device.network, counts.between / device.between)
    bound = max(compute, hbm, network)
    by_kind: dict[str, dict[str, float]] = {}
    for (kind, axes), size in sorted(counts.collectives.items()):
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
        executed_flops=counts.flops,
        recomputed_flops=counts.recomputed,
        collective_bytes=by_kind,
        sent_bytes=counts.sent,
        between_nodes_bytes=counts.between,
        compute_seconds=compute,
        memory_seconds=hbm,
        network_seconds=network,
        step_seconds_bound=bound,
        tokens_per_second=tokens / bound / chips,
        mfu_bound=model_flops / device.flops / bound,
        chip_hours=bound * config.steps * chips / 3600,
        compile_seconds=seconds,
        data_loops=counts.data_loops,
        uncounted=counts.uncounted,
    )


def without_cache(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns the compiled program without JAX's compilation cache, which cannot reload programs for absent chips."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    compilation_cache.reset_cache()  # the cache reads the setting only once
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def exhausted(message: str) -> tuple[int | None, int | None]:
    """Returns (bytes needed, bytes available) of the compiler's out-of-memory error; (None, None) of other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None, None
    sizes = r"([\d.]+)([BKMGT]?)\S*"
    for pattern in (rf"\({sizes}\) exceeds available HBM \({sizes}\)", rf"Used {sizes} of {sizes} hbm"):
        if (match := re.search(pattern, message)) is not None:
            needed, unit, available, available_unit = match.groups()
            return int(float(needed) * _UNITS[unit or "B"]), int(float(available) * _UNITS[available_unit or "B"])
    return None, None
