"""What an observer of a server is told."""

from __future__ import annotations

from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc import tail_pb2 as pb

STREAM = StreamInfo("192.0.2.7", "tiny", b"s" * 16)


def record(
    stream: StreamInfo = STREAM, *, code: int = 0, level: int = 1, release: int = 1, **times: int
) -> FrameRecord:
    packet = Packet(CodecId.RANS, level, 0, 0, b"", b"s" * 16, b"f" * 16)
    times = {"queue_us": 1000, "decode_us": 200, "tail_us": 3000, "total_us": 4500, "batch": 1, **times}
    result = pb.Result(code=code, times=None if code else pb.ServerTimes(**times))
    return FrameRecord(stream, release, packet, 100, result, 40, 0.02)
