"""A run that gets SIGTERM or SIGINT saves a checkpoint before it ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax

from giraffe_jax.records import TrainLog


@contextlib.contextmanager
def _told_to_end(log: TrainLog) -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM append, for the loop to finish its step and save; a second signal ends
    at once.

    In a job of several processes it stays empty: JAX tells all of them of a SIGTERM together (reached_preemption).
    """
    told: list[int] = []
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell may start a background job with SIGINT ignored, which stays so.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def tell(number: int, frame: Any) -> None:
        if told:
            signal.signal(number, before[signal.Signals(number)])
            raise KeyboardInterrupt(
                "told to end twice: ended between two saves; the same command resumes from the last one."
            )
        told.append(number)
        log.say("ending after this step, with a save; the same again ends at once")

    for number in before:
        signal.signal(number, tell)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
