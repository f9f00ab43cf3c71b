"""When frames came and went, for clients that want to know where their time was spent."""

from __future__ import annotations

import time

from narrowcast.transport.rpc import tail_pb2 as pb

# Clients are told times since this process began, and so not for how long the machine has been running.
_ZERO = time.perf_counter() - 1.0


def stamp(times: pb.ServerTimes, arrived: float) -> None:
    """Notes that a result is handed to the network now.

    Args:
        times: the result's.
        arrived: when its packet did, by ``time.perf_counter()``.
    """
    times.total_us = round((time.perf_counter() - arrived) * 1e6)
    times.arrived_us = round((arrived - _ZERO) * 1e6)
