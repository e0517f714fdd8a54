"""One measurement in a process of its own: `python -m giraffe_jax.bench.worker SETTINGS`, JSON in and out."""

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from giraffe_jax.bench.timing import QUICK, fastest
from giraffe_jax.tuning import tune


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds (of the fastest call), peak_bytes, compile_seconds and the side's own facts; for the side
    "machine", its peak FLOP/s and bandwidth.

    compile_seconds: time until the job can be called: tracing and compiling, or reading JAX's compilation cache.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    if settings["side"] != "transformers":
        # Set before JAX allocates its share of GPU memory, which is three quarters by default.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    if settings["side"] == "giraffe_jax":
        tune()  # as `giraffe` does
    if settings["side"] == "machine":
        from giraffe_jax.bench import machine

        return machine.measure(settings["dtype"])
    if settings["side"] == "giraffe_jax":
        from giraffe_jax.bench import ours as side
    else:
        from giraffe_jax.bench import theirs as side
    prepare, facts = side.prepare(settings)
    forget_peak()
    began = time.perf_counter()
    call = prepare()
    ready = time.perf_counter()
    seconds = fastest(call, least=0.0 if settings["platform"] == "cpu" else QUICK)
    return dict(seconds=seconds, peak_bytes=side.peak_bytes() or peak_rss(), compile_seconds=ready - began) | facts


def forget_peak() -> None:
    """Resets the peak of resident memory to what is resident now, if the kernel can (Linux)."""
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
    try:
        answer = main(json.loads(sys.argv[1]))
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        answer = dict(error=f"{type(error).__name__}: {text}"[:500])
    print(json.dumps(answer), flush=True)
