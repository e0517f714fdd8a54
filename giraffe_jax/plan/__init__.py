"""What a training would take on chips that are not there: memory, FLOPs, collectives and time, by its compiled step."""

from giraffe_jax.plan.absent import absent_chips
from giraffe_jax.plan.compiled import Plan, plan
from giraffe_jax.plan.text import text

__all__ = ["Plan", "absent_chips", "plan", "text"]
