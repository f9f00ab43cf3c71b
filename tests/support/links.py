"""Whether this machine can emulate links of packets."""

from __future__ import annotations

import pytest

from narrowcast.devices.errors import LinkUnavailableError
from narrowcast.devices.links import emulated


def why_no_packets() -> str:
    """What is missing; empty where nothing is."""
    try:
        with emulated("lte", "127.0.0.1:9", how="packets"):
            return ""
    except LinkUnavailableError as error:
        return str(error)


NO_PACKETS = why_no_packets()
wants_packets = pytest.mark.skipif(bool(NO_PACKETS), reason=NO_PACKETS)
