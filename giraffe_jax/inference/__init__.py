"""Inference: score tokens, generate tokens, with a KV cache."""

from giraffe_jax.inference.generation import Policy, decode_step, generate, prefill
from giraffe_jax.inference.lm import LM, Scores
from giraffe_jax.inference.scoring import score

__all__ = ["LM", "Policy", "Scores", "decode_step", "generate", "prefill", "score"]
