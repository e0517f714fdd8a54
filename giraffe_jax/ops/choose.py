"""Which implementation of each operation runs, decided in one place by the devices that are traced for.

Attention over whole rows is chosen in giraffe_jax/attention/engine.py, since there the method and the shapes matter
too.
"""

import dataclasses
from typing import Literal

from giraffe_jax import devices

Form = Literal["cpu", "xla"]  # ops/cpu.py, with hand-written gradients, for one CPU; or the plain formula, by XLA
_NAMES: dict[str, str] = {"cpu": "by hand for one CPU", "xla": "by XLA"}


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The implementation of each operation, by name."""

    linear: Form
    mlp: Form  # a layer with adapters always takes "xla"
    norm: Form
    loss: Form
    # What a layer keeps for its backward pass with model.remat="none": everything, or only the outputs of matmuls.
    remat: Literal["all", "matmuls"]
    heads: Literal["in turn", "at once"]  # how blockwise attention goes over rows and heads
    casts: Literal["anywhere", "in the layer"]  # where parameters are cast to the activations' dtype: linear.cast

    def __str__(self) -> str:
        """Returns which form computes what, like "linear, mlp, norm, loss by XLA"."""
        ops = {name: getattr(self, name) for name in ("linear", "mlp", "norm", "loss")}
        by_form = {form: [name for name, used in ops.items() if used == form] for form in _NAMES}
        return "; ".join(f"{', '.join(names)} {_NAMES[form]}" for form, names in by_form.items() if names)


ELSEWHERE = Kernels(linear="xla", mlp="xla", norm="xla", loss="xla", remat="all", heads="at once", casts="anywhere")
ONE_CPU = dataclasses.replace(
    ELSEWHERE, linear="cpu", mlp="cpu", norm="cpu", loss="cpu", remat="matmuls", heads="in turn"
)
TPU = dataclasses.replace(ELSEWHERE, casts="in the layer")


def choose(target: devices.Target | None = None) -> Kernels:
    """Returns the implementations for a target; without one, for the devices that are traced for now."""
    platform, mesh = devices.target() if target is None else target
    if platform == "cpu" and mesh is None:
        return ONE_CPU
    return TPU if platform == "tpu" else ELSEWHERE
