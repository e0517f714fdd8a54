"""Public figures of chips, which rooflines are drawn from. Each line's source is in the comment above it."""

import re
from typing import NamedTuple

from giraffe_jax.config import ConfigError, nearest


class Chip(NamedTuple):
    """What one device, as JAX counts them, can do at most."""

    flops: float  # per second, bfloat16 matmuls
    hbm_bytes: int
    hbm_bandwidth: float  # bytes per second
    network: float  # bytes per second out of the device over all of its links to other chips
    per_chip: int = 1  # devices to a chip

    def a_device(self) -> "Chip":
        """Returns the share of one device in the figures of a chip."""
        n = self.per_chip
        return Chip(self.flops / n, self.hbm_bytes // n, self.hbm_bandwidth / n, self.network / n, n)


GIB = 2**30
# Of whole chips. Google states links' bandwidth in both directions together; half of it leaves the chip.
CHIPS: dict[str, Chip] = {
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
    # nvidia.com/en-us/data-center/h100 (SXM, without sparsity): 900 GB/s of NVLink
    "h100": Chip(989e12, 80 * 10**9, 3350e9, 450e9),
}
TPUS = tuple(name for name in CHIPS if name != "h100")


def kind_of(topology: str) -> str:
    """Returns the kind of chip of a topology such as "v5p:2x2x2".

    Raises:
      ConfigError: no kind of TPU that is known, or no shape.
    """
    kind, _, shape = topology.partition(":")
    if kind not in TPUS:
        hint = nearest(kind, list(TPUS))
        raise ConfigError(f"--topology: got {topology!r}; kinds are {', '.join(TPUS)}, as in v5p:2x2x2.{hint}")
    if not re.fullmatch(r"\d{1,4}x\d{1,4}(x\d{1,4})?", shape):
        example = "2x4" if kind in ("v5e", "v6e") else "2x2x2"
        raise ConfigError(f"--topology: got {topology!r}; expected chips in each dimension, as in {kind}:{example}.")
    return kind
