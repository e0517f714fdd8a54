"""Divides one machine among several jobs: cores, and GPUs or a fraction of one GPU's memory.

XLA's CPU client and BLAS use as many threads as the process has cores, so each job is started with its CPU affinity
set. Where the system has no affinity (macOS), environment variables that they read at start-up limit the threads; those
set by the user are kept.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from giraffe_jax.config import ConfigError

THREADS = ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
FRACTION, OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses both together
ALL_JOBS = 0.9  # fraction of a GPU's memory for all jobs on it; the rest is for the CUDA context of each job
GPUS = "CUDA_VISIBLE_DEVICES"


class Share(NamedTuple):
    """A job's share of the machine: its cores, and environment variables to add to the starter's own."""

    cores: tuple[int, ...]
    env: Mapping[str, str]
    gpus: str  # in words; empty where there are none


def shares(jobs: int) -> list[Share]:
    """Returns the share of each job, of no more jobs than there are cores; cores that share caches go to the same job.

    Raises:
      ConfigError: several jobs on a TPU, which only one process can open.
    """
    cores = _cores()
    jobs = min(jobs, len(cores))
    if jobs > 1 and _tpu():
        raise ConfigError(
            f"--jobs: got {jobs}, but a TPU belongs to one process. Allowed: 1, or JAX_PLATFORMS=cpu set."
        )
    gpus, assigned = _gpus(), []
    for i in range(jobs):
        job_cores = tuple(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs])
        env = {name: os.environ.get(name, str(len(job_cores))) for name in THREADS}
        job_gpus, fraction = _of_gpus(gpus, jobs, i)
        gpu_text = ""
        if fraction < 1:
            old = os.environ.get(FRACTION) or os.environ.get(OLD_FRACTION)
            fraction *= float(old) if old else ALL_JOBS
            env |= {OLD_FRACTION if os.environ.get(OLD_FRACTION) else FRACTION: f"{fraction:.3f}"}
            gpu_text = f"{fraction:.0%} of a GPU's memory"
        elif job_gpus:
            gpu_text = f"{len(job_gpus)} GPU{'s' * (len(job_gpus) > 1)}"
        if len(gpus) > 1:
            env |= {GPUS: ",".join(job_gpus)}
        assigned.append(Share(job_cores, env, gpu_text))
    return assigned


def in_words(shares: list[Share]) -> str:
    """Returns the shares in words: "2 jobs, 4 cores and 45% of a GPU's memory each"."""
    fewest = min(len(share.cores) for share in shares)
    gpus = f" and {shares[0].gpus}" if shares[0].gpus else ""
    return f"{len(shares)} jobs, {fewest} core{'s' * (fewest > 1)}{gpus} each"


@contextlib.contextmanager
def inside(share: Share) -> Iterator[None]:
    """Context manager: threads and processes started inside run on the share's cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share.cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores() -> list[int]:
    """Returns the logical cores this process may use, hyperthreads of one physical core next to each other."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (*_place(core), core))


def _place(core: int) -> tuple[int, int]:
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        return int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text())
    except (OSError, ValueError):
        return 0, core


def _platforms() -> str:
    return os.environ.get("JAX_PLATFORMS", "").lower()


def _gpus() -> list[str]:
    """Returns the GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if (_platforms() and not {"cuda", "gpu"} & set(_platforms().split(","))) or not any(map(_installed, plugins)):
        return []
    if (named := os.environ.get(GPUS)) is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _of_gpus(gpus: list[str], jobs: int, i: int) -> tuple[list[str], float]:
    """Returns (the GPUs of job i, its fraction of their memory, not counting what is kept free)."""
    if jobs <= len(gpus):
        return gpus[i * len(gpus) // jobs : (i + 1) * len(gpus) // jobs], 1.0
    if not gpus:
        return [], 1.0
    return [gpus[i % len(gpus)]], 1 / -(-jobs // len(gpus))


def _tpu() -> bool:
    if _platforms():
        return "tpu" in _platforms()
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and _installed("libtpu")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
