"""Watches every camera: an observer of frames, with bounded memory, whose state survives reconnects and restarts."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.tail.drift.detector import Detector, DriftSettings, State, Verdict
from narrowcast.tail.drift.profile import NAMES, STATISTICS
from narrowcast.tail.errors import DriftStateError
from narrowcast.tail.observe import FrameRecord, Silent
from narrowcast.transport.files import replacing

log = logging.getLogger(__name__)

MAX_CAMERAS = 10_000
MAX_STATE_BYTES = 256 * 1024 * 1024  # all levels of all cameras take less
STATE_SCHEMA = 2
MAX_LEARNING = 16 * 1024 * 1024  # numbers of 4 bytes that are held for all cameras that are still learned


class CameraKey(NamedTuple):
    """One camera: a client may have several, and each keeps its stream's id over reconnects.

    Attributes:
        client: its name.
        model: that it sends to.
        fingerprint: of the codec, 16 bytes: another one has other sizes.
        stream_id: 16 bytes.
    """

    client: str
    model: str
    fingerprint: bytes
    stream_id: bytes


class DriftEvent(NamedTuple):
    """A camera's state has changed.

    Attributes:
        verdict: ``DRIFT``, ``RECOVERED`` or ``ADOPTED``.
        camera: which.
        frame_id: of the frame that decided it.
        level: of that frame.
        frames: told of this camera so far.
        statistic: the number of the profile, or the relation, that raised the alarm.
        shift: its recent distance from the baseline: log2 of bits or of spread (-1 is half), or symbol steps; of a
            relation, these together.
        time_us: microseconds since 1970 UTC.
    """

    verdict: Verdict
    camera: CameraKey
    frame_id: int
    level: int
    frames: int
    statistic: str
    shift: float
    time_us: int


class Alarm(NamedTuple):
    """A camera in alarm.

    Attributes:
        camera: which.
        since_us: microseconds since 1970 UTC; None: since before the state was loaded.
        statistic, shift: see :class:`DriftEvent`; the shift is that of its last frames. None where ``since_us`` is.
    """

    camera: CameraKey
    since_us: int | None
    statistic: str | None
    shift: float | None


class _Stored(msgspec.Struct):
    client: str
    model: str
    fingerprint: bytes
    stream_id: bytes
    state: State


class _File(msgspec.Struct):
    schema: int
    cameras: list[_Stored]


class DriftWatch(Silent):
    """An :class:`~narrowcast.tail.observe.Observer` that knows what each camera's frames are normally like.

    Args:
        settings: how to watch.
        on_event: told of alarms and their ends, on the event loop; must return at once.
        max_cameras: the one that was silent for the longest time is forgotten for one more.

    Attributes:
        alarms_total: alarms raised so far, by model.
    """

    wants_profiles = True

    def __init__(
        self,
        settings: DriftSettings | None = None,
        *,
        on_event: Callable[[DriftEvent], None] | None = None,
        max_cameras: int = MAX_CAMERAS,
    ) -> None:
        self._settings = settings or DriftSettings()
        self._on_event = on_event
        self._max = max_cameras
        self._cameras: OrderedDict[CameraKey, Detector] = OrderedDict()
        self._learning = 0
        self._alarms: dict[CameraKey, int | None] = {}  # since when, the latest last
        self.alarms_total: Counter[str] = Counter()

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        packet, numbers = record.packet, record.profile
        if record.result.code or numbers is None or not record.stream.stream_id:
            return  # what was not decoded may be anything, an image has no symbols, a single call is no camera
        key = CameraKey(record.stream.client, record.stream.model, packet.fingerprint, record.stream.stream_id)
        detector = self._detector(key)
        waiting = detector.waiting
        verdict = detector.tell(numbers, packet.level)
        self._learning += detector.waiting - waiting
        if verdict is not Verdict.NOTHING:
            self._changed(key, verdict, packet.frame_id, packet.level)
        while self._learning > MAX_LEARNING:
            self._stop_learning()

    def _detector(self, key: CameraKey) -> Detector:
        detector = self._cameras.get(key)
        if detector is None:
            if len(self._cameras) >= self._max:
                self._forget()
            detector = self._cameras[key] = Detector(self._settings)
        else:
            self._cameras.move_to_end(key)
        return detector

    def _forget(self) -> None:
        """The camera that was silent for the longest time."""
        forgotten, old = self._cameras.popitem(last=False)
        self._alarms.pop(forgotten, None)
        self._learning -= old.waiting

    def _stop_learning(self) -> None:
        """Of the cameras that are learned at the moment, the one that was silent for the longest time begins anew."""
        key, detector = next((key, one) for key, one in self._cameras.items() if one.waiting)
        self._learning -= detector.waiting
        detector.stop_learning()
        if detector.learning:  # nothing else is known of it
            del self._cameras[key]
            self._alarms.pop(key, None)

    def _changed(self, key: CameraKey, verdict: Verdict, frame_id: int, level: int) -> None:
        detector = self._cameras[key]
        name = f"{key.client}/{key.stream_id.hex()[:8]} ({key.model})"
        if verdict is Verdict.LEARNED:
            log.info("drift: %s: level %d has a baseline after %d frames", name, level, detector.frames)
            return
        if verdict is Verdict.DRIFT:
            self._alarms[key] = time.time_ns() // 1000
            self.alarms_total[key.model] += 1
            what, way = STATISTICS[detector.statistic], "below" if detector.shift < 0 else "above"
            log.warning("drift: %s: its %s is %s the baseline, at frame %d", name, what, way, frame_id)
        else:
            self._alarms.pop(key, None)
            log.warning("drift: %s: %s at frame %d", name, verdict.value, frame_id)
        if self._on_event is not None:
            what, now_us = STATISTICS[detector.statistic], time.time_ns() // 1000
            event = DriftEvent(verdict, key, frame_id, level, detector.frames, what, detector.shift, now_us)
            self._on_event(event)

    def accept(self, client: str, stream_id: bytes) -> int:
        """What these cameras see now is normal (somebody moved or cleaned them): their baselines are learned anew.

        Returns:
            how many cameras that were: one for each model that the stream was used with.
        """
        found = [(key, one) for key, one in self._cameras.items() if (key.client, key.stream_id) == (client, stream_id)]
        for key, detector in found:
            self._alarms.pop(key, None)
            self._learning -= detector.waiting
            detector.accept()
        return len(found)

    @property
    def in_alarm(self) -> Mapping[str, int]:
        """Cameras in alarm now, by model: for the gauge ``narrowcast_rate_drift``."""
        return Counter(key.model for key in self._alarms)

    @property
    def watched(self) -> int:
        """How many cameras are known."""
        return len(self._cameras)

    def alarms(self, most: int) -> list[Alarm]:
        """At most so many cameras in alarm, those with the latest alarms first."""
        found = []
        for key in islice(reversed(self._alarms), most):
            detector, since_us = self._cameras[key], self._alarms[key]
            known = since_us is not None
            what, shift = (STATISTICS[detector.statistic], detector.shift) if known else (None, None)
            found.append(Alarm(key, since_us, what, shift))
        return found

    def status(self, most: int = 1000) -> list[dict[str, Any]]:
        """Cameras for an API: those in alarm first, then those heard last; at most ``most``."""
        cameras = list(self._cameras.items())
        cameras.reverse()
        cameras.sort(key=lambda item: not item[1].alarm)  # keeps the order otherwise
        return [_status(key, detector) for key, detector in cameras[:most]]

    def save(self, path: Path) -> None:
        """Writes what is known of all cameras.

        Raises:
            OSError: the file cannot be written.
        """
        with replacing(path) as out:
            out.write(self.encode())

    def encode(self) -> bytes:
        """What :meth:`save` writes."""
        cameras = [_Stored(*key, detector.state) for key, detector in self._cameras.items()]
        return msgspec.msgpack.encode(_File(STATE_SCHEMA, cameras))

    def load(self, path: Path) -> int:
        """Goes on from what :meth:`save` wrote; returns the number of cameras. No file: none.

        Raises:
            DriftStateError: the file is something else.
        """
        try:
            if path.stat().st_size > MAX_STATE_BYTES:
                raise DriftStateError(f"{path} is no drift state: it has more than {MAX_STATE_BYTES} bytes")
            stored = msgspec.msgpack.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return 0
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DriftStateError(f"{path} is no drift state: {error}; remove it to learn anew") from error
        if stored.schema != STATE_SCHEMA:
            raise DriftStateError(
                f"{path} has drift state of schema {stored.schema}; this release reads {STATE_SCHEMA}"
            )
        for one in stored.cameras[-self._max :]:
            key = CameraKey(one.client, one.model, one.fingerprint, one.stream_id)
            try:
                self._cameras[key] = Detector(self._settings, one.state)
            except ValueError as error:
                raise DriftStateError(f"{path} is no drift state: {error}; remove it to learn anew") from error
            if one.state.alarm:
                self._alarms[key] = None
        return len(self._cameras)


def _status(key: CameraKey, detector: Detector) -> dict[str, Any]:
    return {
        "client": key.client,
        "model": key.model,
        "stream_id": key.stream_id.hex(),
        "state": "alarm" if detector.alarm else "learning" if detector.learning else "normal",
        "frames": detector.frames,
        "statistic": STATISTICS[detector.statistic] if detector.alarm else None,
        "shift": round(detector.shift, 4) if detector.alarm else None,
        "levels": {
            str(level): {
                "bits_per_symbol": round(2 ** float(learned.mean[0]), 4),
                "learned_from_frames": learned.frames,
                "mean": _by_name(learned.mean),
                "deviation": _by_name(learned.deviation),
                "since_start": _by_name(learned.mean - learned.start),
            }
            for level, learned in detector.learned.items()
        },
    }


def _by_name(vector: npt.NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(NAMES, vector[: len(NAMES)], strict=True)}
