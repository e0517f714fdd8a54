"""Training: a config, a step, and the loop around it."""
