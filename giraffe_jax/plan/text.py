"""Formats a plan as text."""

from collections.abc import Sequence

from giraffe_jax.plan.chips import GPUS
from giraffe_jax.plan.compiled import Plan
from giraffe_jax.plan.tries import Tried
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.dry import gib

GPU_SHARE = 0.75  # fraction of a GPU's memory that JAX allocates by default (XLA_PYTHON_CLIENT_MEM_FRACTION)


def text(plan: Plan, config: TrainConfig, price: float | None = None) -> str:
    """Returns what `giraffe plan` prints below the header.

    Args:
      plan: to format.
      config: of the training.
      price: dollars per chip-hour.
    """
    lines = [_memory(plan)]
    flops = f"FLOPs a device and step: model {plan.model_flops:.4g}"
    if plan.executed_flops is None or plan.step_seconds_bound is None:
        return "\n".join([*lines, flops])
    flops += f", executed {plan.executed_flops:.4g}"
    flops += f" ({plan.executed_flops / plan.model_flops:.3f} of the model's"
    lines.append(f"{flops}; {(plan.recomputed_flops or 0) / max(plan.executed_flops, 1):.1%} of them run again)")
    for kernel in plan.uncounted or ():
        lines.append(f"warning: the FLOPs of kernel {kernel} are unknown and not counted.")
    if plan.data_loops and not plan.attention.startswith("blockwise"):
        lines.append(f"warning: the trip counts of {plan.data_loops} loops depend on data; each is counted once.")
    collectives = [
        f"{kind} {size / 1e9:,.3g} GB over {axes}"
        for kind, by_axes in (plan.collective_bytes or {}).items()
        for axes, size in by_axes.items()
    ]
    lines.append(f"collectives, operands a device and step: {', '.join(collectives) or 'none'}")
    sent = f"{(plan.sent_bytes or 0) / 1e9:,.3g} GB sent"
    sent += f", {plan.between_nodes_bytes / 1e9:,.3g} GB of it between nodes," if plan.between_nodes_bytes else ""
    lines.append(
        f"at least {plan.step_seconds_bound:.4g} s a step: matmuls {plan.compute_seconds:.4g} s at the chip's bfloat16 "
        f"peak, arguments and results {plan.memory_seconds:.4g} s, {sent} {plan.network_seconds:.4g} s"
    )
    lines.append(f"at most {plan.tokens_per_second:,.0f} tokens/s a chip, MFU {plan.mfu_bound:.1%}")
    cost = "" if price is None or plan.chip_hours is None else f", ${plan.chip_hours * price:,.2f}"
    lines.append(f"{config.steps:,} steps: at least {plan.chip_hours:,.4g} chip-hours{cost}")
    lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    """Returns the line on memory, and whether the training fits."""
    line = f"memory a device: parameters {gib(plan.parameter_bytes)}, optimizer {gib(plan.optimizer_bytes)}"
    of = f"of {gib(plan.hbm_bytes)}"
    if plan.needed_bytes is not None:
        over = plan.needed_bytes - plan.hbm_bytes
        return f"{line}; does not fit: the compiler needs {gib(plan.needed_bytes)} {of}, {gib(over)} too much"
    assert plan.peak_bytes is not None
    line += f", activations {gib(plan.peak_bytes - plan.argument_bytes)}, at the peak {gib(plan.peak_bytes)} {of}"
    line += f"; {gib(plan.host_bytes)} in the host's pinned memory" if plan.host_bytes else ""
    if not plan.fits:
        return f"{line}: does not fit, {gib(plan.peak_bytes - plan.hbm_bytes)} too much"
    share = plan.peak_bytes / plan.hbm_bytes
    if plan.topology.partition(":")[0] in GPUS and share > GPU_SHARE:
        line += f" (with XLA_PYTHON_CLIENT_MEM_FRACTION of {share:.2f} at least; JAX takes {GPU_SHARE})"
    return f"{line}: fits"


def of_try(tried: Tried, flags: Sequence[str], hbm: int) -> str:
    """Returns the line on a try: its flags and the result.

    Args:
      tried: the result.
      flags: the changes as command-line flags.
      hbm: bytes of a device's memory.
    """
    changes = " ".join(flags)
    if tried.refused is not None:
        return f"{changes}: not possible: {tried.refused}"
    if tried.peak_bytes is None:
        return f"{changes}: does not fit, the compiler needs {gib(tried.needed_bytes or 0)}"
    result = f"{'fits' if tried.fits else 'does not fit'}, at the peak {gib(tried.peak_bytes)} of {gib(hbm)}"
    result += f", {gib(tried.host_bytes)} in the host's pinned memory" if tried.host_bytes else ""
    if tried.executed_flops and tried.model_flops:
        result += f", executed FLOPs {tried.executed_flops / tried.model_flops:.3f} of the model's"
    return f"{changes}: {result}, at least {tried.step_seconds_bound:.4g} s a step"
