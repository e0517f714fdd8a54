"""Plans training on chips that this machine does not have, from the compiled step: memory, FLOPs, collectives, time."""

from giraffe_jax.plan.absent import absent_chips
from giraffe_jax.plan.compiled import Plan, plan
from giraffe_jax.plan.text import text

__all__ = ["Plan", "absent_chips", "plan", "text"]
