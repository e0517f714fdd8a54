"""A run that gets SIGTERM or SIGINT saves a checkpoint before it ends."""

import contextlib

import jax

from giraffe_jax.records import TrainLog
from giraffe_jax.records.signals import told_to_end


def _told_to_end(log: TrainLog) -> contextlib.AbstractContextManager[list[int]]:
    """Yields a list to which SIGINT and SIGTERM append, for the loop to finish its step and save; a second signal ends
    at once.

    In a job of several processes it stays empty: JAX tells all of them of a SIGTERM together (reached_preemption).
    """
    if jax.process_count() > 1:
        return contextlib.nullcontext([])
    return told_to_end(
        "told to end twice: ended between two saves; the same command resumes from the last one.",
        lambda: log.say("ending after this step, with a save; the same again ends at once"),
    )
