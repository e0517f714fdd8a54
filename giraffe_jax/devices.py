"""Which devices the code that is traced now will run on: those of the current mesh, present or not."""

from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh


class Target(NamedTuple):
    """Devices that are traced for. `mesh` is None for a single device."""

    platform: str  # "cpu", "gpu" or "tpu"
    mesh: AbstractMesh | None = None


def target() -> Target:
    """Returns the devices of the current mesh (jax.set_mesh, use_abstract_mesh); without one, this process's default.

    A mesh of chips that this machine does not have counts as theirs: compiling for them gives what they would run.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    platform = "gpu" if platform == "cuda" else platform
    return Target(platform, None if mesh.empty or mesh.size == 1 else mesh)
