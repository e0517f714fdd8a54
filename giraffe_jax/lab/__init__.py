"""Experiments: variants and tasks, what they cost, what was measured and whether it still counts."""
