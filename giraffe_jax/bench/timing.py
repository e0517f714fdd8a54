"""How often a call is repeated, and which time of it counts."""

import time
from collections.abc import Callable
from typing import Any

ENOUGH, LONG = 5.0, 60.0  # seconds after which a call is not repeated again; not even once
QUICK = 0.5  # seconds that calls on a GPU are repeated for at least, since its clock takes a while to rise


def fastest(call: Callable[[], Any], most: int = 5, least: float = 0.0) -> float:
    """Returns the seconds of the fastest call; the first is a warm-up, unless it alone took LONG.

    Calls are `most`, or as many as take `least` seconds where that is more.
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
