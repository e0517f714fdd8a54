"""The width of XLA's vector instructions on a CPU, set when `giraffe` starts.

GIRAFFE_TUNING=off leaves XLA_FLAGS as it is, and so does a width that XLA_FLAGS already has.
"""

import os
from pathlib import Path

SWITCH = "GIRAFFE_TUNING"
VECTOR = "--xla_cpu_prefer_vector_width"


def tune() -> None:
    """Sets XLA_FLAGS for 512-bit vectors if the CPU has AVX-512; XLA's default is 256. Call it before JAX starts."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if VECTOR not in flags and "avx512f" in _cpu_flags():
        os.environ["XLA_FLAGS"] = f"{flags} {VECTOR}=512".strip()


def _cpu_flags() -> frozenset[str]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return frozenset()
