"""One measurement in a process of its own: `python -m giraffe_jax.bench.worker SETTINGS`, JSON in and out."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from giraffe_jax.tuning import tune

ENOUGH, LONG = 5.0, 60.0  # seconds after which a call is not repeated again; not even once


def main(settings: dict[str, Any]) -> dict[str, float]:
    """Returns seconds (the fastest call), peak_bytes and compile_seconds of a job; or what the machine gives."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    if settings["side"] == "giraffe_jax":
        tune()  # as the command does
    if settings["side"] == "machine":
        from giraffe_jax.bench import machine

        return machine.measure(settings["dtype"])
    if settings["side"] == "giraffe_jax":
        from giraffe_jax.bench import ours as side
    else:
        from giraffe_jax.bench import theirs as side
    prepare = side.prepare(settings)
    forget_peak()
    began = time.perf_counter()
    call = prepare()
    ready = time.perf_counter()
    seconds = fastest(call)
    return dict(seconds=seconds, peak_bytes=side.peak_bytes() or peak_rss(), compile_seconds=ready - began)


def fastest(call: Callable[[], Any], most: int = 5) -> float:
    """Returns the seconds of the fastest call; the first is a warm-up, unless it alone took LONG."""
    best, spent = float("inf"), 0.0
    for n in range(most):
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        best, spent = min(best, seconds), spent + seconds
        if spent > (ENOUGH if n else LONG):
            break
    return best


def forget_peak() -> None:
    """Lets the peak of resident memory start anew from what is resident now, where the kernel can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_rss() -> int:
    """Returns the peak of this process's resident memory in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
