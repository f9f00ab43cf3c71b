"""The offload decision as a client uses it: what its bundle, its link and its board offer, frame by frame."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from narrowcast.head.ahead import Ready, made_ready
from narrowcast.head.errors import BackendError
from narrowcast.head.rate.control import RateControl
from narrowcast.head.rate.offload import WAYS, BoardTimes, Chooser, Prospect, WayName
from narrowcast.head.results import Result
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.timing import FrameTimes
from narrowcast.head.whole import WholeSession
from narrowcast.transport.bundle import Manifest
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError, MissingPartError
from narrowcast.transport.packet import STREAM_HEADER_BYTES, Kind
from narrowcast.transport.tasks import MAIN

Offload = Literal["auto", "split", "local", "image"]
Way = Literal["symbols", "image"]
# A server says these of images that it has no network for.
NO_IMAGES = {"FAILED_PRECONDITION", "UNIMPLEMENTED", "INVALID_ARGUMENT", "NOT_FOUND"}
NOT_MAIN = f"the uncut network answers as the tail {MAIN!r} does, which is not asked for"
# Why a frame is not sent that the uncut network here may answer all the same.
LIMITS = {"budget", "data-cap", "too-large"}
# Unless its answer would hardly be in time.
LEAST_CHANCE = 0.5
# Without a deadline, answers are wanted soon all the same.
NOMINAL_SECONDS = 1.0


def check_offload(offload: Offload | None, way: Way, joules: Mapping[WayName, float] | None) -> Way:
    """Whether a client's settings go together; what it sends where it sends.

    Raises:
        ConfigError: they do not.
    """
    if offload is not None and offload not in get_args(Offload):
        raise ConfigError(f"offload {offload!r}: one of {', '.join(get_args(Offload))}")
    if offload in ("auto", "local", "split") and way == "image":
        raise ConfigError(f"offload {offload!r} and way 'image': they say different things")
    if joules and offload != "auto":
        raise ConfigError("joules by way are for offload 'auto'")
    return "image" if offload == "image" else way


class ImageFigures:
    """What images of one codec and quality are worth, by the bundle's figures.

    Raises:
        ConfigError: they do not say.
    """

    def __init__(self, manifest: Manifest, codec: str, quality: int) -> None:
        try:
            rows = {(one["codec"], one["quality"]): one for one in manifest.figures["sent_images"]}
            row = rows[codec, quality]
            self.accuracy, self.size = float(row["agreement"]), float(row["mean_packet_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{manifest.name} does not say what images as {codec} of quality {quality} are worth (figures.sent_images, "
                "which compile measures with [export] whole = true)"
            ) from error


class OffloadControl:
    """Decides for each frame of a client where it is answered. Safe to call from several threads.

    Args:
        session: the head.
        mode: ``auto``: among all ways that the bundle has the parts and figures for; ``local``: here alone.
        rate: of the same client, which follows the link; None with ``local``.
        image_codec: of images, with their quality.
        joules: that the board spends on a frame, by way: measured by whoever knows (``narrowcast profile``).
        link_is_down: whether the link is known to be.
        main_is_asked: whether the tail ``main`` is among those that the client wants.

    Attributes:
        ways: that there are to choose from.
        left_out: those that there are not, and why.
        chooser: counts what was chosen, and why.

    Raises:
        MissingPartError, BackendError: ``local`` is asked for, and the bundle has no uncut network, or one that does not
            run here.
        ConfigError: ways that there are not, energies that are none, or ``local`` where the tail ``main`` is not asked for.
    """

    def __init__(
        self,
        session: HeadSession,
        mode: Literal["auto", "local"],
        rate: RateControl | None,
        *,
        image_codec: tuple[str, int] = ("jpeg", 75),
        joules: Mapping[WayName, float] | None = None,
        link_is_down: Callable[[], bool] = lambda: False,
        main_is_asked: bool = True,
    ) -> None:
        self.left_out: dict[WayName, str] = {}
        self.chooser = Chooser()
        self.times = BoardTimes()
        self._session, self._rate, self._link_is_down = session, rate, link_is_down
        self._joules = dict(joules or {})
        if not set(self._joules) <= set(WAYS) or not all(0 < one < float("inf") for one in self._joules.values()):
            raise ConfigError(f"joules a frame by way {self._joules}: above 0 each, of {', '.join(WAYS)}")
        self._lock = threading.Lock()
        self._image: ImageFigures | None = None
        self._whole: WholeSession | None = None
        try:
            if not main_is_asked:
                raise ConfigError(NOT_MAIN)
            self._whole = session.whole
            self._warm(self._whole)
        except (ConfigError, MissingPartError, BackendError) as error:
            if mode == "local":
                raise
            self._whole = None
            self.left_out["local"] = str(error)
        if mode == "auto":
            try:
                self._image = ImageFigures(session.bundle.manifest, *image_codec)
            except ConfigError as error:
                self.left_out["image"] = str(error)
        self._sends = mode == "auto"

    @property
    def ways(self) -> list[WayName]:
        """That there are to choose from."""
        there = {"split": self._sends, "image": self._image is not None, "local": self._whole is not None}
        return [way for way in WAYS if there[way]]

    def _warm(self, whole: WholeSession) -> None:
        """The uncut network's time here, before the first frame: the first run of all is slower."""
        frame = self._session.contract.prepare(_gray(self._session.contract.size)).image
        for _ in range(3):
            before = time.perf_counter()
            whole.network.run(frame)
            seconds = time.perf_counter() - before
        self.times.took("local", seconds)

    def prepare(
        self,
        frame: Image | Ready,
        started: float,
        limit_ms: float | None,
        *,
        split: Callable[[Image | Ready], Encoded],
        image: Callable[[Image | Ready], Encoded],
    ) -> Encoded:
        """A frame, encoded or answered. One that a budget, a cap or the limit on packets keeps back is answered here.

        Args:
            frame: as it was handed over.
            started: when, by ``time.perf_counter()``.
            limit_ms: by when after that its answer is wanted; None for no deadline.
            split: makes symbols of it, by rate control.
            image: makes an image of it.
        """
        now = time.monotonic()
        elapsed = time.perf_counter() - started
        left = NOMINAL_SECONDS if limit_ms is None else limit_ms / 1000 - elapsed
        down = self._link_is_down()
        with self._lock:
            chosen = self.chooser.choose(self._prospects(now, left, down=down), now, may_probe=not down)
        encoded = self._timed(chosen.way, {"local": self._answer, "split": split, "image": image}[chosen.way], frame)
        if encoded.dropped in LIMITS and self._whole is not None:
            spent = time.perf_counter() - started - elapsed
            if limit_ms is None or self.times.chance("local", left - spent) >= LEAST_CHANCE:
                with self._lock:
                    self.chooser.kept_back(chosen)
                return self._timed("local", self._answer, frame)
        return encoded

    def _timed(self, way: WayName, work: Callable[[Image | Ready], Encoded], frame: Image | Ready) -> Encoded:
        before = time.perf_counter()
        encoded = work(frame)
        if encoded.dropped is None:
            with self._lock:
                self.times.took(way, time.perf_counter() - before)
        return encoded

    def _prospects(self, now: float, left: float, *, down: bool) -> list[Prospect]:
        found = []
        if self._whole is not None:
            seconds = self.times.seconds("local")
            found.append(Prospect("local", self.times.chance("local", left), seconds, self._joules.get("local")))
        if self._rate is None or (down and found):
            return found
        for way, accuracy, size in self._sent(now, left):
            board = self.times.seconds(way)
            outlook = self._rate.outlook(size, left - board, now)
            value = outlook.chance * accuracy
            found.append(Prospect(way, value, board + outlook.seconds, self._joules.get(way)))
        return found

    def _sent(self, now: float, left: float) -> list[tuple[WayName, float, float]]:
        """Ways that send something: name, accuracy, bytes of a packet."""
        assert self._rate is not None
        option = self._rate.likely(left - self.times.seconds("split"), now)
        ways: list[tuple[WayName, float, float]] = [("split", option.accuracy, option.size)]
        if self._image is not None:
            ways.append(("image", self._image.accuracy, self._image.size + STREAM_HEADER_BYTES))
        return ways

    def _answer(self, frame: Image | Ready) -> Encoded:
        """The uncut network's answer."""
        assert self._whole is not None
        answer = self._whole.answer(made_ready(frame, self._session.contract))
        times = FrameTimes(resize_ms=answer.resize_ms, exit_ms=answer.whole_ms)
        codec = self._session.codec.codec_id
        return Encoded(b"", 0, answer.placement, times, None, codec, outputs=answer.outputs)

    def follow(self, encoded: Encoded, task: asyncio.Task[Result]) -> None:
        """Learns from what becomes of a frame: a server without the uncut network is not sent images again."""
        if encoded.kind is Kind.IMAGE and self._image is not None:
            task.add_done_callback(self._image_answered)

    def _image_answered(self, task: asyncio.Task[Result]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        result = task.result()
        if result.status in NO_IMAGES:
            with self._lock:
                self._image = None
                self.left_out["image"] = f"the server answers images with {result.status}: {result.error}"

    def summary(self) -> str:
        """In a line: how many frames went which way, and why."""
        ways = ", ".join(f"{count} {way}" for way, count in self.chooser.chosen.most_common())
        why = ", ".join(f"{reason} {count}" for reason, count in self.chooser.reasons.most_common())
        left_out = "".join(f"; no {way}: {reason}" for way, reason in self.left_out.items())
        changes = f"{self.chooser.switches} changes of way"
        return f"offload: {ways or 'no frames'} ({why or 'nothing chosen'}), {changes}{left_out}"


def whole_result(encoded: Encoded, frame_id: int, started: float, answers: Mapping[str, Any]) -> Result:
    """The result of a frame that the uncut network has answered here."""
    assert encoded.outputs is not None
    return Result(
        frame_id=frame_id, outputs=encoded.outputs, error=None, level=encoded.level, packet_bytes=0, times=encoded.times,
        latency_ms=(time.perf_counter() - started) * 1000, placement=encoded.placement, source="whole", answers=answers,
    )  # fmt: skip


def _gray(size: tuple[int, int]) -> Image:
    return np.full((*size, 3), 128, np.uint8)
