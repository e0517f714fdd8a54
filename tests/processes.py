"""Processes that tests start and interrupt."""

import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def start(command: Sequence[str], **keys: Any) -> subprocess.Popen:
    """Starts a process that hears SIGINT: a shell's background jobs, and what they start, ignore it otherwise."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is handled here is the default in a new program
    try:
        return subprocess.Popen(command, **keys)
    finally:
        signal.signal(signal.SIGINT, before)
