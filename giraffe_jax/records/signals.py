"""SIGINT and SIGTERM: the first one lets a command finish what it is doing, the second one ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def told_to_end(at_second: str, at_first: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Yields a list to which the first SIGINT or SIGTERM is added; outside the main thread it stays empty.

    Args:
      at_second: message of the KeyboardInterrupt that a second signal raises.
      at_first: is called at the first signal.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell may start a background job with SIGINT ignored, which stays so.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: Any) -> None:
        if signals:
            signal.signal(number, before[signal.Signals(number)])
            raise KeyboardInterrupt(at_second)
        signals.append(number)
        at_first()

    for number in before:
        signal.signal(number, handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
