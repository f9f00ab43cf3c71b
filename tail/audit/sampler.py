"""Which frames are kept: one in N, and those around alarms."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from typing import NamedTuple

from narrowcast.tail.audit.samples import Reason
from narrowcast.tail.observe import FrameRecord
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc import tail_pb2 as pb

MAX_RECENT_BYTES = 64 * 1024 * 1024
_RECORD_BYTES = 600  # of the objects around a packet, about
_NO_RESULT = pb.Result()


class _Camera(NamedTuple):
    client: str
    stream_id: bytes


class Chosen(NamedTuple):
    """A frame to keep, and why."""

    record: FrameRecord
    reason: Reason


class Sampler:
    """Decides frame by frame.

    Args:
        every: one in so many frames, chosen by a hash of stream and frame, so that a frame that is sent again is judged the
            same; 0: none.
        before: frames before an alarm that are kept.
        after: frames behind it.
        max_recent_bytes: of all cameras' latest frames, which are held in memory in case an alarm follows; the camera that
            was silent for the longest time gives way.

    Raises:
        ConfigError: a number below 0.
    """

    def __init__(
        self, every: int, *, before: int = 10, after: int = 30, max_recent_bytes: int = MAX_RECENT_BYTES
    ) -> None:
        if min(every, before, after, max_recent_bytes) < 0:
            raise ConfigError(
                f"one in {every} frames, {before} before an alarm and {after} behind it: 0 or more of each"
            )
        self._every, self._before, self._after = every, before, after
        self._most = max_recent_bytes
        self._recent: OrderedDict[_Camera, deque[FrameRecord]] = OrderedDict()
        self._recent_bytes = 0
        self._left: dict[_Camera, int] = {}

    def frame(self, record: FrameRecord) -> list[Chosen]:
        """The frames to keep now that this one has come: none or this one."""
        camera = _Camera(record.stream.client, record.stream.stream_id)
        left = self._left.get(camera, 0)
        if left:
            if left == 1:
                del self._left[camera]
            else:
                self._left[camera] = left - 1
            return [Chosen(record, "alarm")]
        if self._every and _one_in(self._every, record):
            return [Chosen(record, "every")]
        if self._before:
            self._remember(camera, record)
        return []

    def alarm(self, client: str, stream_id: bytes) -> list[Chosen]:
        """A camera's latest frames: to be kept, for it has raised an alarm. Those that follow are kept as they come."""
        camera = _Camera(client, stream_id)
        recent = self._recent.pop(camera, deque())
        self._recent_bytes -= sum(map(_held_bytes, recent))
        if self._after:
            self._left[camera] = self._after
            while len(self._left) > 1000:  # those of cameras that fell silent
                del self._left[next(iter(self._left))]
        return [Chosen(record, "alarm") for record in recent]

    def _remember(self, camera: _Camera, record: FrameRecord) -> None:
        recent = self._recent.setdefault(camera, deque())
        self._recent.move_to_end(camera)
        recent.append(
            record._replace(result=_NO_RESULT, profile=None)
        )  # only the packet is kept; a mask may be megabytes
        self._recent_bytes += _held_bytes(record)
        if len(recent) > self._before:
            self._recent_bytes -= _held_bytes(recent.popleft())
        while self._recent_bytes > self._most and self._recent:
            _, forgotten = self._recent.popitem(last=False)
            self._recent_bytes -= sum(map(_held_bytes, forgotten))


def _held_bytes(record: FrameRecord) -> int:
    symbols = 0 if record.key is None else record.key.symbols.nbytes
    return record.packet_bytes + symbols + _RECORD_BYTES


def _one_in(every: int, record: FrameRecord) -> bool:
    packet = record.packet
    digest = hashlib.blake2b(packet.stream_id + packet.frame_id.to_bytes(4, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % every == 0
