"""How wide XLA makes the vectors of loops on a CPU, set where `giraffe` starts.

GIRAFFE_TUNING=off leaves the process as it is. What the user has set stays.
"""

import os
from pathlib import Path

SWITCH = "GIRAFFE_TUNING"
VECTOR = "--xla_cpu_prefer_vector_width"


def tune() -> None:
    """Lets XLA use whole 512-bit vectors where there are any; 256 bits are its default everywhere."""
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
