"""Watches every camera: an observer of frames, with bounded memory, whose state survives reconnects and restarts."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from narrowcast.tail.drift.detector import Detector, DriftSettings, State, Verdict
from narrowcast.tail.errors import DriftStateError
from narrowcast.tail.observe import FrameRecord, Silent
from narrowcast.transport.files import replacing
from narrowcast.transport.packet import CodecId, Kind

log = logging.getLogger(__name__)

MAX_CAMERAS = 10_000
MAX_STATE_BYTES = 64 * 1024 * 1024
STATE_SCHEMA = 1
_SIZES_TELL = {CodecId.RANS, CodecId.RANS_CONTEXT, CodecId.ZSTD}  # packed payloads of a level all have one size


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
        shift: recent distance from the baseline, log2 of bytes: -1 is half the bytes.
        time_us: microseconds since 1970 UTC.
    """

    verdict: Verdict
    camera: CameraKey
    frame_id: int
    level: int
    frames: int
    shift: float
    time_us: int


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
    """An :class:`~narrowcast.tail.observe.Observer` that knows each camera's normal packet sizes.

    Args:
        settings: how to watch.
        on_event: told of alarms and their ends, on the event loop; must return at once.
        max_cameras: the one that was silent for the longest time is forgotten for one more.

    Attributes:
        alarms_total: alarms raised so far, by model.
    """

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
        self._in_alarm: Counter[str] = Counter()
        self.alarms_total: Counter[str] = Counter()

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        packet = record.packet
        if record.result.code or not record.stream.stream_id:
            return  # what was not decoded may be anything; a single call is no camera
        if packet.kind is not Kind.SYMBOLS or packet.codec not in _SIZES_TELL:
            return
        key = CameraKey(record.stream.client, record.stream.model, packet.fingerprint, record.stream.stream_id)
        verdict = self._detector(key).tell(len(packet.payload), packet.level)
        if verdict is not Verdict.NOTHING:
            self._changed(key, verdict, packet.frame_id, packet.level)

    def _detector(self, key: CameraKey) -> Detector:
        detector = self._cameras.get(key)
        if detector is None:
            if len(self._cameras) >= self._max:
                forgotten, old = self._cameras.popitem(last=False)
                self._in_alarm[forgotten.model] -= old.alarm
            detector = self._cameras[key] = Detector(self._settings)
        else:
            self._cameras.move_to_end(key)
        return detector

    def _changed(self, key: CameraKey, verdict: Verdict, frame_id: int, level: int) -> None:
        detector = self._cameras[key]
        name = f"{key.client}/{key.stream_id.hex()[:8]} ({key.model})"
        if verdict is Verdict.LEARNED:
            log.info("drift: %s: level %d has a baseline after %d frames", name, level, detector.frames)
            return
        if verdict is Verdict.DRIFT:
            self._in_alarm[key.model] += 1
            self.alarms_total[key.model] += 1
            way = "fewer" if detector.shift < 0 else "more"
            log.warning("drift: %s: %s bytes than its baseline, at frame %d", name, way, frame_id)
        else:
            self._in_alarm[key.model] -= 1
            log.warning("drift: %s: %s at frame %d", name, verdict.value, frame_id)
        if self._on_event is not None:
            shift, now_us = detector.shift, time.time_ns() // 1000
            self._on_event(DriftEvent(verdict, key, frame_id, level, detector.frames, shift, now_us))

    def accept(self, client: str, stream_id: bytes) -> int:
        """What these cameras see now is normal (somebody moved or cleaned them): their baselines are learned anew.

        Returns:
            how many cameras that were: one for each model that the stream was used with.
        """
        found = [(key, one) for key, one in self._cameras.items() if (key.client, key.stream_id) == (client, stream_id)]
        for key, detector in found:
            self._in_alarm[key.model] -= detector.alarm
            detector.accept()
        return len(found)

    @property
    def in_alarm(self) -> Mapping[str, int]:
        """Cameras in alarm now, by model: for the gauge ``narrowcast_rate_drift``."""
        return dict(self._in_alarm)

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
            self._cameras[key] = Detector(self._settings, one.state)
            self._in_alarm[key.model] += one.state.alarm
        return len(self._cameras)


def _status(key: CameraKey, detector: Detector) -> dict[str, Any]:
    return {
        "client": key.client,
        "model": key.model,
        "stream_id": key.stream_id.hex(),
        "state": "alarm" if detector.alarm else "learning" if detector.learning else "normal",
        "frames": detector.frames,
        "bytes_ratio": round(2**detector.shift, 4) if detector.alarm else None,
        "levels": {
            str(level): {
                "mean_bytes": round(2**learned.mean, 1),
                "deviation_percent": round(100 * (2**learned.deviation - 1), 2),
                "learned_from_frames": learned.frames,
                "since_start_percent": round(100 * (2 ** (learned.mean - learned.start) - 1), 2),
            }
            for level, learned in detector.learned.items()
        },
    }
