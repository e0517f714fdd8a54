"""Published figures of chips, for rooflines. The comment above each line names its source."""

import math
import re
from typing import NamedTuple

from giraffe_jax.config import ConfigError, nearest


class Chip(NamedTuple):
    """Peak figures of a chip, or of one device as JAX counts them."""

    flops: float  # per second, bfloat16 matmuls
    hbm_bytes: int
    hbm_bandwidth: float  # bytes per second
    network: float  # bytes per second out of the device over all of its links to other chips
    per_chip: int = 1  # devices per chip
    between: float = math.inf  # bytes per second out of the device to other nodes; unknown for slices of TPUs

    def a_device(self) -> "Chip":
        """Returns the figures of one device of this chip."""
        n = self.per_chip
        share = (self.flops / n, self.hbm_bytes // n, self.hbm_bandwidth / n, self.network / n)
        return Chip(*share, n, self.between / n)


GIB = 2**30
# Of whole chips. Google states the bandwidth of links for both directions together; half of it leaves the chip.
TPUS: dict[str, Chip] = {
    # cloud.google.com/tpu/docs/v4; links: Jouppi et al., arXiv:2304.01433, table 4, 6 of 50 GB/s
    "v4": Chip(275e12, 32 * GIB, 1200e9, 300e9),
    # cloud.google.com/tpu/docs/v5e: 400 GB/s of links
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    # cloud.google.com/tpu/docs/v5p: 1,200 GB/s of links
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    # cloud.google.com/tpu/docs/v6e: 800 GB/s of links
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
    # cloud.google.com/tpu/docs/tpu7x: 1,200 GB/s of links; JAX sees each of a chip's two cores
    "tpu7x": Chip(2307e12, 192 * GIB, 7380e9, 600e9, per_chip=2),
}
# NVIDIA also states NVLink's bandwidth for both directions, and matmul rates with sparsity; here are half of each.
# Memory is what CUDA reports, from XLA's descriptions of the cards (openxla/xla,
# xla/backends/gpu/target_config/specs). Between nodes: one network adapter per GPU, as in the card's DGX.
GPUS: dict[str, Chip] = {
    # nvidia.com/en-us/data-center/a100 (80 GB, SXM): 600 GB/s of NVLink; DGX A100: 200 Gb/s adapters
    "a100": Chip(312e12, 85_100_068_864, 2039e9, 300e9, between=25e9),
    # nvidia.com/en-us/data-center/h100 (SXM): 900 GB/s of NVLink; DGX H100: 400 Gb/s adapters
    "h100": Chip(989e12, 84_942_979_072, 3350e9, 450e9, between=50e9),
    # nvidia.com/en-us/data-center/h200 (SXM): 900 GB/s of NVLink; DGX H200: 400 Gb/s adapters
    "h200": Chip(989e12, 151_397_597_184, 4800e9, 450e9, between=50e9),
}
CHIPS = TPUS | GPUS


def kind_of(topology: str) -> str:
    """Returns the kind of chip of a topology such as "v5p:2x2x2" or "h100:1x8".

    Raises:
      ConfigError: unknown kind of chip, or malformed shape.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        hint = nearest(kind, list(CHIPS))
        kinds = f"kinds are {', '.join(CHIPS)}, as in v5p:2x2x2 or h100:1x8"
        raise ConfigError(f"--topology: got {topology!r}; {kinds}.{hint}")
    size = r"[1-9]\d{0,3}"
    if kind in GPUS and not re.fullmatch(f"{size}x([1-9]|1[0-6])", shape):
        expected = f"expected nodes and the GPUs of each, at most 16, as in {kind}:1x8"
        raise ConfigError(f"--topology: got {topology!r}; {expected}.")
    if kind in TPUS and not re.fullmatch(f"{size}x{size}(x{size})?", shape):
        example = "2x4" if kind in ("v5e", "v6e") else "2x2x2"
        raise ConfigError(f"--topology: got {topology!r}; expected chips in each dimension, as in {kind}:{example}.")
    return kind


def a_node(topology: str) -> int:
    """Returns the GPUs per node of a topology such as "h100:4x8"; 0 for TPUs."""
    kind, _, shape = topology.partition(":")
    return int(shape.split("x")[1]) if kind in GPUS else 0
