"""What sinks are told of a frame."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support import bundles

from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.tail.sinks import SinkObserver
from narrowcast.transport.bundle import OutputSpec
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import to_tensor
from narrowcast.transport.tasks import DetectTask


class Memory:
    """A sink that keeps everything."""

    name = "memory"

    def __init__(self) -> None:
        self.bodies: list[dict] = []

    def deliver(self, records):
        self.bodies += [record.body for record in records]

    def close(self):
        pass


def detector():
    """A manifest for frames of free size whose boxes are chosen by whoever reads them."""
    task = DetectTask(
        classes=["cat"], strides=[4], scores=["s"], boxes=["b"], centerness=[], decode_on="device", unit="pixel",
        activation="none", score_threshold=0.5,
    )  # fmt: skip
    outputs = [OutputSpec(name=name, dtype="float32", shape=[1, 2, 2]) for name in ("s", "b")]
    return msgspec.structs.replace(bundles.make_free().manifest, task=task, outputs=outputs)


@pytest.mark.parametrize("kind", [Kind.SYMBOLS, Kind.IMAGE])
def test_boxes_are_told_with_the_frames_own_input_size(kind):
    # A frame of 13 x 22 pixels, filled up to 16 x 24, which is more than the 8 x 8 of the crops that training sees.
    scores, sides = np.zeros((1, 4, 6), np.float32), np.full((4, 4, 6), 2, np.float32)
    scores[0, 3, 5] = 0.75
    if kind is Kind.SYMBOLS:
        codec, payload = CodecId.RANS, bytes([4, 6]) + b"coded"
    else:
        codec, payload = CodecId.JPEG, encode_image(np.zeros((13, 22, 3), np.uint8))
    packet = Packet(codec, 0, 7, 0, payload, bytes(16), bytes(16), kind)
    result = pb.Result(frame_id=7, outputs=[to_tensor("s", scores), to_tensor("b", sides)])
    sink = Memory()
    observer = SinkObserver([sink], lambda model, release: detector())
    observer.frame_done(FrameRecord(StreamInfo("me", "free", bytes(16)), 1, packet, 99, result, 9, 0.0))
    observer.close()
    assert [body["answers"]["main"] for body in sink.bodies] == [
        {"boxes": [{"class": 0, "name": "cat", "score": 0.75, "box": [20.0, 12.0, 24.0, 16.0]}], "input_size": [16, 24]}
    ]
