"""Devices that this machine does not have, for XLA to compile for."""

import importlib.util
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from giraffe_jax.config import ConfigError
from giraffe_jax.plan.chips import CHIPS, TPUS, kind_of


class Card(NamedTuple):
    """The CUDA device properties that XLA needs of a GPU, besides its memory."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    units: int  # float32 units per multiprocessor
    clock: float  # GHz
    cache: int  # bytes of L2 cache
    shared: int  # bytes of shared memory per multiprocessor
    shared_block: int  # most bytes of shared memory that a block can opt in to


# CUDA C++ programming guide, "Compute capabilities"; NVIDIA's white papers of the A100 and of the H100.
CARDS = dict(
    a100=Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10, 163 * 2**10),
    h100=Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10, 227 * 2**10),
    h200=Card("NVIDIA H200", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10, 227 * 2**10),
)
_OF_ALL = dict(
    threads_per_block_limit=1024, threads_per_warp=32, threads_per_core_limit=2048, shared_memory_per_block=48 * 2**10,
    registers_per_core_limit=65536, registers_per_block_limit=65536, block_dim_limit_x=2**31 - 1,
    block_dim_limit_y=65535, block_dim_limit_z=65535,
)  # fmt: skip
_CUDA, _CUDNN = (12, 8, 0), (9, 10, 0)  # library versions to compile for; they need not be installed


def absent_chips(topology: str, slices: int = 1) -> list[Any]:
    """Returns the devices of a topology such as "v5p:4x4x4" or "h100:4x8"; none of them has to be on this machine.

    Args:
      topology: kind of chip, then chips per dimension of a TPU slice, or nodes x GPUs per node.
      slices: number of TPU slices.

    Raises:
      ConfigError: the compiler for such devices is not installed, or the topology does not exist.
    """
    kind = kind_of(topology)
    if kind in TPUS:
        return _tpus(topology, kind, slices)
    if slices > 1:
        nodes = f"Nodes of GPUs are the first number of a topology, as in {kind}:{slices}x8"
        raise ConfigError(f"--slices: got {slices}, for --topology={topology}; slices are of TPUs. {nodes}.")
    return _gpus(topology, kind)


def _tpus(topology: str, kind: str, slices: int) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            '--topology: compiling for TPUs needs libtpu, which is not installed: pip install "giraffe-jax[plan]".'
        )
    options: dict[str, Any] = {} if slices == 1 else dict(num_slices=slices)
    if kind == "v4":  # JAX runs the two cores of a v4 chip as one device
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise _refused(topology, "libtpu", error) from error


def _gpus(topology: str, kind: str) -> list[Any]:
    if not any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        raise ConfigError(
            "--topology: compiling for NVIDIA GPUs needs JAX's CUDA plugin, which is not installed (NVIDIA's own "
            'libraries and a GPU need not be here): pip install "giraffe-jax[plan-gpu]".'
        )
    options = dict(target_config=target(kind), topology="1x" + topology.partition(":")[2])
    try:
        return list(topologies.get_topology_desc(kind, "cuda", **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise _refused(topology, "JAX's CUDA plugin", error) from error


def _refused(topology: str, who: str, error: Exception) -> ConfigError:
    return ConfigError(f"--topology: got {topology!r}, of which {who} says: {str(error).splitlines()[0]}")


def target(kind: str) -> str:
    """Returns XLA's description of a kind of GPU: a GpuTargetConfigProto as text."""
    card, chip = CARDS[kind], CHIPS[kind]
    numbers = _OF_ALL | dict(
        core_count=card.cores, fpus_per_core=card.units, clock_rate_ghz=card.clock, l2_cache_size=card.cache,
        shared_memory_per_core=card.shared, shared_memory_per_block_optin=card.shared_block,
        device_memory_size=chip.hbm_bytes, memory_bandwidth=int(chip.hbm_bandwidth),
    )  # fmt: skip
    lines = [f"{key}: {value}" for key, value in numbers.items()]
    major, minor = card.capability
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # such cards compile for sm_90a
    lines.append(f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}")
    cuda, cudnn = (".".join(map(str, version)) for version in (_CUDA, _CUDNN))
    lines += [f'name: "{card.name}"', f'runtime_version: "{cuda}"', f'driver_version: "{cuda}"']
    lines.append(f'dnn_version: "{cudnn}"')
    version = "major: {} minor: {} patch: {}".format(*_CUDNN)
    return "\n".join([
        "gpu_device_info {", *lines, "}", 'platform_name: "CUDA"', f"dnn_version_info {{ {version} }}",
        f'device_description_str: "{card.name}"',
    ])  # fmt: skip
