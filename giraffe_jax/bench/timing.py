"""Times a call: how often to repeat it, and which time counts."""

import time
from collections.abc import Callable
from typing import Any

ENOUGH, LONG = 5.0, 60.0  # seconds in total after which a call is not repeated; of a first call that is not repeated
QUICK = 0.5  # least seconds of repeating calls on a GPU, whose clock takes a while to rise


def fastest(call: Callable[[], Any], most: int = 5, least: float = 0.0) -> float:
    """Returns the seconds of the fastest call.

    Args:
      call: to time.
      most: number of calls, unless they take too long (ENOUGH, LONG).
      least: seconds for which to go on calling, beyond `most` calls.
    """
    best, spent, n = float("inf"), 0.0, 0
    while n < most or (spent < least and n < 10_000):
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        best, spent = min(best, seconds), spent + seconds
        if spent > (ENOUGH if n else LONG):
            break
        n += 1
    return best
