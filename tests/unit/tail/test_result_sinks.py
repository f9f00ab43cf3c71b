"""What the server's sinks are told of frames, whatever becomes of releases meanwhile."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
from support import bundles
from support.waiting import until

from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.tail.sinks import SinkObserver
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import to_tensor
from narrowcast.transport.tasks import ClassifyTask

STREAM = b"s" * 16


def record(number: int, size: int = 3) -> FrameRecord:
    packet = Packet(CodecId.RANS, 0, number, 12, bytes(1000), STREAM, bytes(16))
    result = pb.Result(frame_id=number, outputs=[to_tensor("output", np.zeros(size, np.float32))])
    return FrameRecord(StreamInfo("gate", "tiny", STREAM), 1, packet, 1024, result, result.ByteSize(), 0.0)


class Memory:
    name = "memory"

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.open = threading.Event()

    def deliver(self, records):
        self.open.wait(20)
        self.bodies += [one.body for one in records]

    def close(self):
        pass


def answered(sink: Memory) -> list[bool]:
    return ["answers" in body for body in sink.bodies]


def test_a_release_that_was_gone_when_its_first_frame_came_and_is_back():
    manifest = bundles.make().manifest
    served: dict[int, object] = {}
    sink = Memory()
    sink.open.set()
    observer = SinkObserver([sink], lambda name, release: served.get(release), raw=True)
    observer.frame_done(record(0))  # its last frame: a newer one has taken its place
    served[1] = manifest
    observer.frame_done(record(1))
    del served[1]
    observer.frame_done(record(2))  # of which we know
    observer.close()
    assert answered(sink) == [False, True, True]


def test_another_bundle_under_the_same_release_tells_its_own_names():
    served = [
        msgspec.structs.replace(bundles.make().manifest, task=ClassifyTask(classes=names))
        for names in (["car", "bus", "van"], ["cat", "dog", "fox"])
    ]
    sink = Memory()
    sink.open.set()
    observer = SinkObserver([sink], lambda name, release: served[0])
    observer.frame_done(record(0))
    served.pop(0)
    observer.frame_done(record(1))
    observer.close()
    assert [body["answers"]["main"]["classes"][0]["name"] for body in sink.bodies] == ["car", "cat"]


def test_what_waits_for_a_sink_that_hangs_is_bounded_in_bytes():
    sink = Memory()
    observer = SinkObserver([sink], lambda name, release: None)
    (box,) = observer._outboxes
    box._max_bytes = 10 * record(1, size=1000).result_bytes
    observer.frame_done(record(0))
    until(lambda: len(box._under_way) == 1, "one is being delivered")
    for number in range(1, 50):
        observer.frame_done(record(number, size=1000))
    assert len(box._items) == 10
    assert all(item.record.packet.payload == b"" for item in box._items)
    assert observer.counts["memory"].dropped == 39
    sink.open.set()
    observer.close()
    assert box._bytes == 0
    assert [body["frame_id"] for body in sink.bodies] == [0, *range(40, 50)]
