"""The devices for which code is being traced: those of the current mesh, whether they are attached or not."""

from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh


class Target(NamedTuple):
    """The devices for which code is traced; `mesh` is None for a single one."""

    platform: str  # "cpu", "gpu" or "tpu"
    mesh: AbstractMesh | None = None


_CAPABILITIES = dict(A100="8.0", H100="9.0", H200="9.0")  # of GPUs that are not attached, for compiling ahead


def target() -> Target:
    """Returns the devices of the current mesh (jax.set_mesh, use_abstract_mesh); without one, this process's default.

    The mesh may be of chips that are not attached; code compiled for it is what these would run.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    platform = "gpu" if platform == "cuda" else platform
    return Target(platform, None if mesh.empty or mesh.size == 1 else mesh)


def capability() -> str:
    """Returns the compute capability, such as "9.0", of the GPUs for which code is traced; an H100's if unknown."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    kind = "" if device is None else device.device_kind
    known = next((number for name, number in _CAPABILITIES.items() if name in kind), None)
    return known or getattr(jax.devices()[0], "compute_capability", _CAPABILITIES["H100"])
