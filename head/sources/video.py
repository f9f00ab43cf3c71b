"""Video files, cameras (V4L2) and streams (RTSP, HTTP) through FFmpeg's libraries, by PyAV."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.head.errors import SourceError
from narrowcast.head.sources.base import Captured
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import MissingDependencyError

# What a stream may take to open, and to bring its next bytes.
OPEN_SECONDS, READ_SECONDS = 10.0, 10.0
# What a picture may have, as for image files: untrusted streams announce what they like.
MAX_PIXELS = 7680 * 4320


class Video:
    """A video.

    A live one's frames were captured when they come out of the decoder, less the decoder's delay, which nobody knows.

    Args:
        url: a file, ``/dev/video0``, ``rtsp://...``, ``http://...``: what FFmpeg opens.
        live: whether frames come by themselves.
        options: FFmpeg's, such as ``{"video_size": "1280x720"}`` for a camera.
        form: FFmpeg's name of the container or device; None for what it finds.
        name: for people; empty takes the address, without its password.
        on_trouble: told where packets are damaged, once for all in a row; their frames are left out.

    Raises:
        MissingDependencyError: PyAV is not installed.
    """

    paced = False

    def __init__(
        self,
        url: str,
        *,
        live: bool,
        options: dict[str, str] | None = None,
        form: str | None = None,
        name: str = "",
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingDependencyError("reading video", "PyAV", "pip install 'narrowcast[video]'", error) from error
        self._av = av
        self._url, self.live, self._form = url, live, form
        self.name = name or without_password(url)
        self._options = options or {}
        self._on_trouble = on_trouble or (lambda line: None)
        self._closed = False

    def frames(self) -> Iterator[Captured]:
        """The first video stream's frames.

        Raises:
            SourceError: no such file, camera or stream, no video in it, or it breaks off.
        """
        self._closed = False
        try:
            timeout = (OPEN_SECONDS, READ_SECONDS) if self.live else None
            with self._av.open(self._url, format=self._form, options=self._options, timeout=timeout) as container:
                if not container.streams.video:
                    raise SourceError(f"{self.name}: there is no video in it")
                stream = container.streams.video[0]
                if self.live:
                    stream.codec_context.flags |= self._av.codec.context.Flags.low_delay
                else:
                    stream.thread_type = "AUTO"
                yield from self._decoded(container, stream)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            text = (getattr(error, "strerror", None) or str(error)).replace(self._url, self.name)
            raise SourceError(f"{self.name}: {text}") from error

    def _decoded(self, container: Any, stream: Any) -> Iterator[Captured]:
        # Decoders with several threads tell of damage packets later, but between the right frames.
        damaged, last = 0, self.name
        for packet in container.demux(stream):
            if self._closed:
                return
            try:
                decoded = packet.decode()
            except self._av.error.InvalidDataError as error:
                damaged += 1
                if damaged == 1:
                    self._on_trouble(f"skipped: {last}: damaged packets follow: {error.strerror}")
                if damaged > 100:
                    raise SourceError(f"{self.name}: 100 packets in a row are damaged: {error.strerror}") from error
                continue
            for frame in decoded:
                damaged = 0
                if frame.width * frame.height > MAX_PIXELS:
                    raise SourceError(
                        f"{self.name} has {frame.width} x {frame.height} pixels; the limit is {MAX_PIXELS}"
                    )
                captured_at = time.monotonic()
                last = self.name if frame.time is None else f"{self.name}@{frame.time:.3f}"
                yield Captured(_upright(frame), captured_at, last)

    def close(self) -> None:
        """Ends it with the next packet, or when the wait for it is over."""
        self._closed = True


def _upright(frame: Any) -> Image:
    """A decoded frame's pixels as players show them: phones film as they are held, and say how to turn it."""
    pixels: Image = frame.to_ndarray(format="rgb24")
    # Counterclockwise, as rot90 has it. The oldest PyAV does not tell.
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


class Camera(Video):
    """A V4L2 camera.

    Args:
        device: ``/dev/video0``.
        size: ``1280x720``; the camera's own if None.
        fps: that the camera is asked for.
    """

    def __init__(self, device: str, *, size: str | None = None, fps: float | None = None) -> None:
        options = {"video_size": size} if size else {}
        if fps is not None:
            options["framerate"] = f"{fps:g}"
        super().__init__(device, live=True, options=options, form="v4l2")

    def frames(self) -> Iterator[Captured]:
        """See :meth:`Video.frames`."""
        if not Path(self._url).exists():
            raise SourceError(f"{self.name}: no such camera")
        yield from super().frames()


def without_password(url: str) -> str:
    """An address as it may be shown and logged."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
