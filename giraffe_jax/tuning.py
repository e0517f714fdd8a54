"""Settings of the process by which one CPU trains faster, made where `giraffe` starts.

GIRAFFE_TUNING=off makes none of them; `giraffe bench` measures both. What the user has set stays.
"""

import ctypes
import os
import platform
from pathlib import Path

SWITCH = "GIRAFFE_TUNING"
VECTOR = "--xla_cpu_prefer_vector_width"
# glibc's mallopt(3): a step's large arrays come back to the same pages, instead of being given to the kernel at each
# step and faulted in at the next.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGEST = 2**31 - 1


def tune() -> None:
    """Keeps freed memory in the process, in one arena, and lets XLA use whole 512-bit vectors where there are any."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if VECTOR not in flags and "avx512f" in _cpu_flags():
        os.environ["XLA_FLAGS"] = f"{flags} {VECTOR}=512".strip()
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        for option, value in ((TRIM_THRESHOLD, LARGEST), (MMAP_THRESHOLD, LARGEST), (ARENA_MAX, 1)):
            libc.mallopt(option, value)


def _cpu_flags() -> frozenset[str]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return frozenset()
