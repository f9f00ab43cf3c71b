"""One event loop on one background thread, for clients that are used from ordinary code.

It lives as long as the process: gRPC's asyncio layer keeps a poller per process that still posts to a loop after its last
channel was closed, and complains where that loop is gone.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Runs a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())


def _loop() -> asyncio.AbstractEventLoop:
    global _running  # noqa: PLW0603  (one per process is the point)
    with _lock:
        if _running is None or _running[0] != os.getpid():  # a forked child has no threads of its parent
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="narrowcast", daemon=True).start()
            _running = os.getpid(), loop
        return _running[1]
