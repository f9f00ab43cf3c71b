"""Whose frame goes first."""

from __future__ import annotations

from collections import Counter

import pytest

from narrowcast.tail.fair_queue import FairQueue
from narrowcast.tail.frame import Frame, Priority, priority_of
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc import tail_pb2 as pb


def frame(client: str, number: int = 0, priority: Priority = Priority.NORMAL) -> Frame:
    return Frame(Packet(CodecId.RANS, 0, number, 0, b"", bytes(16), bytes(16)), client=client, priority=priority)


def popped(queue: FairQueue) -> list[tuple[str, int]]:
    found = []
    while queue:
        one = queue.pop()
        found.append((one.client, one.packet.frame_id))
    return found


@pytest.fixture
def queue() -> FairQueue:
    return FairQueue(100, 60)


def test_clients_take_turns_and_each_keeps_its_order(queue):
    for number in range(4):
        queue.push(frame("busy", number))
    queue.push(frame("late", 0))
    queue.push(frame("later", 0))
    assert popped(queue) == [("busy", 0), ("late", 0), ("later", 0), ("busy", 1), ("busy", 2), ("busy", 3)]
    assert (len(queue), queue.clients) == (0, 0)


def test_a_client_with_many_frames_does_not_hold_up_one_with_few(queue):
    for number in range(50):
        queue.push(frame("flood", number))
    queue.push(frame("rare"))
    assert ("rare", 0) in popped(queue)[:2]


def test_priorities_share_by_weight_and_none_starves(queue):
    for number in range(40):
        queue.push(frame("a", number, Priority.URGENT))
        queue.push(frame("b", number, Priority.BACKGROUND))
    first = Counter(client for client, _ in popped(queue)[:34])
    assert first == {"a": 32, "b": 2}
    queue = FairQueue(100, 60)
    for number in range(20):
        queue.push(frame("a", number, Priority.NORMAL))
        queue.push(frame("b", number, Priority.BACKGROUND))
    assert Counter(client for client, _ in popped(queue)[:10]) == {"a": 8, "b": 2}


def test_bounds_are_per_queue_and_per_client():
    queue = FairQueue(3, 2)
    queue.push(frame("a"))
    queue.push(frame("a", priority=Priority.URGENT))
    assert queue.is_full_for("a")
    assert not queue.is_full_for("b")
    queue.push(frame("b"))
    assert queue.is_full_for("c")
    queue.pop()
    assert not queue.is_full_for("a")


def test_frames_can_be_taken_out(queue):
    frames = [frame("a", number) for number in range(5)]
    for one in frames:
        queue.push(one)
    assert queue.remove(frames[2])
    assert not queue.remove(frames[2])
    assert not queue.remove(frame("b"))
    assert queue.remove_if(lambda one: one.packet.frame_id > 2) == frames[3:]
    assert queue.waiting_of("a") == 2
    assert list(queue.heads()) == frames[:1]
    assert popped(queue) == [("a", 0), ("a", 1)]


@pytest.mark.parametrize(
    ("number", "priority"),
    [
        (pb.PRIORITY_UNSPECIFIED, Priority.NORMAL),
        (pb.PRIORITY_BACKGROUND, Priority.BACKGROUND),
        (pb.PRIORITY_NORMAL, Priority.NORMAL),
        (pb.PRIORITY_URGENT, Priority.URGENT),
        (99, Priority.NORMAL),
    ],
)
def test_the_priorities_of_the_wire(number, priority):
    assert priority_of(number) is priority
