"""How ``narrowcast serve`` ends: the first signal drains, within a time; the second one ends at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals(tell: Callable[[signal.Signals, bool], None]) -> asyncio.Event:
    """Listens on the running loop.

    Args:
        tell: called with a signal, and whether it is the second, so that the process ends when ``tell`` returns.

    Returns:
        is set at the first signal. At the second, the process ends with the exit code 128 + N, whatever its threads do.
    """
    stop = asyncio.Event()

    def on(number: signal.Signals) -> None:
        tell(number, stop.is_set())
        if stop.is_set():
            end_now(128 + number)
        stop.set()

    for number in NUMBERS:
        asyncio.get_running_loop().add_signal_handler(number, on, number)
    return stop


def end_in_any_case(seconds: float, tell: Callable[[], None]) -> None:
    """Ends the process with 0 after so long, if it has not ended by then: a tail may hang, or a library's thread."""

    def late() -> None:
        tell()
        end_now(0)

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()


def end_now(code: int) -> None:
    """Ends the process without waiting for its threads: a tail that hangs is not to keep it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            continue
    os._exit(code)
