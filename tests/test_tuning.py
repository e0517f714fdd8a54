"""What `giraffe` sets of its own process, and what it leaves alone."""

import os
import platform
import subprocess
import sys

import pytest

from giraffe_jax import tuning

PROBE = "import os; from giraffe_jax.tuning import tune; tune(); print(os.environ.get('XLA_FLAGS', ''))"


@pytest.mark.parametrize(
    ("flags", "env", "want"),
    [
        ("fpu avx2 avx512f", {}, "--xla_cpu_prefer_vector_width=512"),
        ("fpu avx2", {}, ""),
        ("avx512f", {"GIRAFFE_TUNING": "off"}, ""),
        ("avx512f", {"XLA_FLAGS": "--a=1"}, "--a=1 --xla_cpu_prefer_vector_width=512"),
        ("avx512f", {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=256"}, "--xla_cpu_prefer_vector_width=256"),
    ],
)
def test_vectors_are_as_wide_as_the_processor_has_them_unless_told_otherwise(monkeypatch, flags, env, want):
    for name in ("XLA_FLAGS", "GIRAFFE_TUNING"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in (env | {"MALLOC_ARENA_MAX": "4"}).items():  # the allocator of the tests stays as it is
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tuning, "_cpu_flags", lambda: frozenset(flags.split()))
    tuning.tune()
    assert os.environ.get("XLA_FLAGS", "") == want


GROWN = """
import ctypes, resource, sys
from giraffe_jax.tuning import tune
tune()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 64 * 2**20
def once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    p = libc.malloc(size); ctypes.memset(p, 1, size); libc.free(p)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
once()
print(once())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
def test_freed_memory_is_used_again_without_a_page_fault():
    def faults(**env):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GIRAFFE_TUNING"))}
        done = subprocess.run(
            [sys.executable, "-c", GROWN], capture_output=True, text=True, env=clean | env, check=True
        )
        return int(done.stdout)

    assert faults(GIRAFFE_TUNING="off") >= 16 > faults()  # 64 MiB, in pages of 2 MiB at most
