"""The room that the references of all streams share."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles

from narrowcast.tail.errors import NeedKeyError
from narrowcast.tail.frame import Frame
from narrowcast.tail.references import References, Room
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.video import Memory, VideoCodec

SYMBOLS, SYMBOLS_BYTES = np.zeros((4, 5, 5), np.uint8), 100
SIZE = 3 * SYMBOLS_BYTES  # with what is remembered; the answer below is empty


class Camera:
    """A stream whose frames are answered one after the other."""

    def __init__(self, room: Room, client: str, count: int = 80) -> None:
        self.kept = References(None, count, room, client)  # type: ignore[arg-type]  (nothing is predicted here)
        self.frames = 0

    def show(self, count: int = 1) -> None:
        for _ in range(count):
            packet = Packet(CodecId.RANS, 0, self.frames, 0, b"", bytes(16), bytes(16))
            frame = Frame(packet)
            frame.response = pb.StreamResponse()
            frame.kept = (SYMBOLS, Memory(np.zeros(SYMBOLS.shape, np.int16), 0))
            self.kept.keep(frame)
            self.frames += 1


def test_a_client_alone_may_have_all_of_the_room():
    room = Room(10 * SIZE)
    cameras = [Camera(room, "greedy") for _ in range(3)]
    cameras[0].show(20)
    assert [len(one.kept) for one in cameras] == [10, 0, 0]
    for camera in cameras:
        camera.show(20)
    assert sorted(len(one.kept) for one in cameras) == [3, 3, 4], "its streams share what it has"
    assert room.used == 10 * SIZE == room.clients["greedy"]


@pytest.mark.parametrize("streams", [1, 16])
def test_a_client_gets_its_share_from_one_that_has_filled_the_room(streams: int):
    room = Room(32 * SIZE)
    many = [Camera(room, "greedy") for _ in range(streams)]
    for _ in range(40):
        for camera in many:
            camera.show()
    late = Camera(room, "late", count=9)
    late.show(30)
    assert len(late.kept) == 9, "it wants no more than its window"
    other = Camera(room, "other")
    for _ in range(60):
        other.show()
        for camera in many:
            camera.show()
    assert len(late.kept) == 9, "less than a share is not taken"
    assert room.clients == pytest.approx({"greedy": 11 * SIZE, "late": 9 * SIZE, "other": 12 * SIZE}, abs=SIZE)
    assert sum(len(one.kept) for one in [*many, late, other]) == 32


def test_what_a_client_leaves_goes_to_the_others_again():
    room = Room(8 * SIZE)
    first, second = Camera(room, "first"), Camera(room, "second")
    for _ in range(20):
        first.show()
        second.show()
    assert [len(first.kept), len(second.kept)] == [4, 4]
    second.kept.close()
    assert room.clients == {"first": 4 * SIZE}
    first.show(20)
    assert len(first.kept) == 8
    first.kept.close()
    assert room.used == 0
    assert room.clients == {}


def test_a_frame_that_is_larger_than_the_room_is_not_kept():
    room = Room(SIZE - 1)
    camera = Camera(room, "first")
    camera.show(3)
    assert len(camera.kept) == 0
    assert room.used == 0


def test_streams_that_keep_nothing_take_no_place():
    room = Room(4 * SIZE)
    idle = [Camera(room, f"client {k}") for k in range(50)]
    busy = Camera(room, "busy")
    busy.show(9)
    assert len(busy.kept) == 4
    assert room.clients == {"busy": 4 * SIZE}
    assert not any(len(one.kept) for one in idle)


@pytest.mark.parametrize("kind", [Kind.PREDICTED, Kind.SKIP])
def test_a_reference_of_another_size_is_answered_with_the_wish_for_a_key(kind):
    codec = VideoCodec(bundles.make_free().manifest.codec, bundles.video_tables().to_bytes())
    kept = References(codec, 4, Room())
    small, large = (np.zeros((3, 8, columns), np.uint8) for columns in (8, 12))
    key = Frame(Packet(CodecId.RANS, 1, 0, 0, b"", bytes(16), bytes(16)))
    key.response, key.kept = pb.StreamResponse(), (small, codec.memory(small, None))
    kept.keep(key)

    def refer(symbols):
        skip, memory = codec.skip_payload(symbols.shape), codec.memory(symbols, None)
        payload = skip if kind is Kind.SKIP else codec.encode(symbols, 1, memory)
        packet = Packet(CodecId.RANS_PREDICTED, 1, 1, 0, payload, bytes(16), bytes(16), kind, 0)
        return kept.find(packet, codec, 0)

    assert refer(small).symbols is small
    with pytest.raises(NeedKeyError, match="frame 0 is of another size"):
        refer(large)
