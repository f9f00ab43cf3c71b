"""Where one frame's time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# In the order in which a frame passes through them. `wire` is both ways and everything else between the two programs:
# the answer's time less what the server says it took; no clock of one machine is ever subtracted from another's.
STAGES = ("resize", "head", "encode", "wire", "queue", "decode", "tail")


class Exchange(NamedTuple):
    """The four times of a packet and its answer, in seconds, each by its own machine's monotonic clock.

    Their differences within a machine are times; across machines they hold the clocks' offset, of which each exchange is a
    bound (RFC 5905, the on-wire protocol).

    Attributes:
        sent: here, by ``time.perf_counter()``.
        arrived: there, by the server's clock.
        returned: there.
        answered: here.
    """

    sent: float
    arrived: float
    returned: float
    answered: float


@dataclass
class FrameTimes:
    """Milliseconds per stage of one frame; None where it did not pass through that stage."""

    resize_ms: float | None = None
    head_ms: float | None = None
    encode_ms: float | None = None
    wire_ms: float | None = None
    queue_ms: float | None = None
    decode_ms: float | None = None
    tail_ms: float | None = None
    exit_ms: float | None = None  # in place of the last four, where the device answered by itself

    def stages(self) -> dict[str, float]:
        """The stages that were measured, by name, in order."""
        measured = ((stage, getattr(self, f"{stage}_ms")) for stage in (*STAGES, "exit"))
        return {stage: value for stage, value in measured if value is not None}
