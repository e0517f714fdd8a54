"""The bench's table: medians over runs, both sides next to each other; below it, notes on each side and failures."""

import statistics
from collections.abc import Sequence
from typing import Any

from giraffe_jax.bench.jobs import job

OURS, THEIRS = "giraffe_jax", "transformers"
HEAD = [
    "", "seconds", "tokens/s", "TFLOP/s", "of peak", "memory", "transformers: seconds", "tokens/s", "TFLOP/s",
    "of peak", "memory", "speed-up", "memory ratio", "time of plain attention", "compiled in", "again",
]  # fmt: skip


def table(machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table: medians over runs, and ratios of the peer's median to ours.

    "time of plain attention" is a method's time over that of causal attention in one band. "compiled in" is our compile
    time in the first run, "again" in later runs, which read JAX's compilation cache except on a CPU. For `decode`, "of
    peak" is relative to the memory bandwidth.
    """
    lines = [_machine(machine), "", "| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for name in dict.fromkeys(row["job"] for row in rows if row["side"] == OURS) or dict.fromkeys(
        row["job"] for row in rows
    ):
        parsed_job = job(name)
        ours, theirs = _median(rows, name, OURS), _median(rows, str(parsed_job.peer), THEIRS)
        plain = _median(rows, str(parsed_job.plain), OURS)
        cells = [name, *_cells(ours), *_cells(theirs)]
        cells += [_ratio(theirs, ours, "seconds"), _ratio(ours, theirs, "peak_bytes"), _ratio(ours, plain, "seconds")]
        own_rows = [row for row in rows if row["job"] == name and row["side"] == OURS and "error" not in row]
        for runs in ([r for r in own_rows if r["run"] == 0], [r for r in own_rows if r["run"] > 0]):
            cells.append(f"{statistics.median(r['compile_seconds'] for r in runs):.1f} s" if runs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_said(rows)])


def _machine(machine: dict[str, Any]) -> str:
    """Returns a line with the device, versions and measured peaks."""
    device = machine.get("device_kind", "")
    parts = [f"{device} ({machine['platform']})"] if device else []
    parts += [f"{name} {machine[name]}" for name in ("jax", "torch", "transformers", "python") if name in machine]
    parts += [f"{machine['params']:,} parameters"] if "params" in machine else []
    peak, unit = machine["matmul_flops"], "TFLOP/s" if machine["matmul_flops"] >= 1e13 else "GFLOP/s"
    parts.append(f"matmul peak {peak / (1e12 if unit == 'TFLOP/s' else 1e9):.0f} {unit}" + (
        f" in {machine['dtype']}" if "dtype" in machine else ""
    ))  # fmt: skip
    return ", ".join([*parts, f"memory {machine['bandwidth'] / 1e9:.1f} GB/s"])


def _said(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the list below the table: notes on each side, failed measurements and skipped ones."""
    notes: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.get("note"):
            notes.setdefault((row["side"], row["note"]), {})[row["job"]] = None
    lines = [f"- {side}, {', '.join(jobs)}: {note}" for (side, note), jobs in notes.items()]
    failed = {(r["side"], r["job"], r["error"]): None for r in rows if "error" in r and not r.get("left")}
    lines += [f"- failed: {side}, {name}: {error}" for side, name, error in failed]
    unstarted = [f"{r['side']} {r['job']} (run {r['run'] + 1})" for r in rows if r.get("left")]
    lines += [f"- not begun, since the minutes were over: {', '.join(unstarted)}"] if unstarted else []
    return ["", *lines] if lines else []


def _median(rows: Sequence[dict[str, Any]], name: str, side: str) -> dict[str, float] | None:
    measured = [row for row in rows if row["job"] == name and row["side"] == side and "error" not in row]
    keys = ("seconds", "tokens_per_second", "flops_per_second", "fraction", "peak_bytes")
    return {key: statistics.median(row[key] for row in measured) for key in keys} if measured else None


def _cells(x: dict[str, float] | None) -> list[str]:
    if x is None:
        return ["-"] * 5
    speed = [f"{x['tokens_per_second']:,.3g}" if x["tokens_per_second"] < 1e3 else f"{x['tokens_per_second']:,.0f}"]
    speed += [f"{x['flops_per_second'] / 1e12:.3g}", f"{x['fraction']:.0%}"]
    return [f"{x['seconds']:.3g}", *speed, f"{x['peak_bytes'] / 1e9:.2f} GB"]


def _ratio(numerator: dict[str, float] | None, denominator: dict[str, float] | None, key: str) -> str:
    return "-" if numerator is None or denominator is None else f"{numerator[key] / denominator[key]:.2f}"
