"""What a training would take on chips that are not there: memory, FLOPs, collectives and time, by its compiled step."""

from giraffe_jax.plan.compiled import Plan, absent_chips, plan
from giraffe_jax.plan.text import text

__all__ = ["Plan", "absent_chips", "plan", "text"]
