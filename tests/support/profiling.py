"""The profiler without boards, links or time: ways whose frames take what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from narrowcast.devices.profile.frames import FrameSet
from narrowcast.devices.profile.runners import Sample, WayInfo
from narrowcast.head.socket_bytes import SocketBytes

FRAMES = FrameSet("nowhere", images=[np.zeros((2, 2, 3), np.uint8)] * 3)


class FakeClock:
    """Time that goes on only when told."""

    def __init__(self, ns: int = 0) -> None:
        self.ns = ns

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class FakeRunner:
    """Frames take ``ms(number)``; remote ones send 100 bytes each."""

    def __init__(
        self, way: str, clock: FakeClock, ms: Callable[[int], float] = lambda number: 10.0, *, link: str | None = None
    ) -> None:
        self.info = WayInfo(way, "local" if link is None else "split", way, link)
        self.clock, self.ms = clock, ms
        self.ran: list[int] = []
        self.fails: set[int] = set()
        self.raises: dict[int, BaseException] = {}

    def run(self, image: np.ndarray) -> Sample:
        number = len(self.ran)
        if number in self.raises:
            raise self.raises.pop(number)
        self.ran.append(self.clock.ns)
        took = self.ms(number)
        self.clock.sleep(took / 1000)
        if number in self.fails:
            return Sample(took, {}, {}, failed="DEADLINE_EXCEEDED")
        return Sample(took, {"head": 0.4 * took}, {"output": np.array([1.0, 0.0])}, up_bytes=100, down_bytes=10)

    def run_many(self, images: Iterator[np.ndarray]) -> Iterator[Sample]:
        for image in images:
            yield self.run(image)._replace(stages={})

    def socket_bytes(self) -> SocketBytes | None:
        return SocketBytes(150 * len(self.ran), 50 * len(self.ran)) if self.info.link else None

    def close(self, *, hurried: bool = False) -> None:
        pass
