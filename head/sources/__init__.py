"""Where frames come from: ``docs/sources.md``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from narrowcast.head.errors import SourceError
from narrowcast.head.sources.base import Captured, Source
from narrowcast.head.sources.feed import Feed, FeedCounters
from narrowcast.head.sources.files import ImageFiles, WatchedFolder
from narrowcast.head.sources.raw import RawForm, RawFrames, RawSocket
from narrowcast.head.sources.video import Camera, Video
from narrowcast.transport.errors import ConfigError, FrameError
from narrowcast.transport.frames import SUFFIXES

__all__ = [
    "Captured",
    "Feed",
    "FeedCounters",
    "ImageFiles",
    "Source",
    "SourceError",
    "WatchedFolder",
    "is_film",
    "open_source",
]

SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp")


def is_film(uri: str, *, watch: bool = False) -> bool:
    """Whether a source's frames follow one another: a camera's, a stream's, a video's; images of a folder need not."""
    path = Path(uri)
    return not watch and ("://" in uri or not (path.is_dir() or path.suffix.lower() in SUFFIXES))


def open_source(
    uri: str,
    *,
    watch: bool = False,
    raw: RawForm | None = None,
    size: str | None = None,
    on_trouble: Callable[[str], None] | None = None,
) -> Source:
    """A source by its name.

    Args:
        uri: an image or video file; a folder of images; ``/dev/video0``; ``rtsp://``, ``http://`` and others of FFmpeg's;
            ``-`` for stdin, ``unix:PATH`` for a socket.
        watch: of a folder, also images that appear later.
        raw: what raw frames are like; they come from stdin, a socket, a file or a named pipe.
        size: of a camera's pictures, ``1280x720``.
        on_trouble: told, in a line, of files that are left out, and of damage in a video file.

    Raises:
        FrameError: no such file or folder, or no images in it.
        SourceError: a socket that cannot be made.
        ConfigError: settings that do not go together.
        MissingDependencyError: PyAV is wanted and not installed.
    """
    path = Path(uri)
    if uri == "-" or uri.startswith("unix:"):
        if raw is None:
            raise ConfigError(f"frames from {uri} are raw: say what they are like (--raw 640x480:rgb)")
        return RawFrames("-", raw) if uri == "-" else RawSocket(Path(uri.removeprefix("unix:")), raw)
    if watch and path.exists() and not path.is_dir():
        raise ConfigError(f"{uri} cannot be watched: it is no folder")
    if watch or raw is not None:
        return WatchedFolder(path, on_trouble) if raw is None else RawFrames(uri, raw)
    return _video(uri, size) or _file(path, on_trouble)


def _video(uri: str, size: str | None) -> Source | None:
    """A stream or a camera; None where it is neither."""
    scheme, separator, _ = uri.partition("://")
    if separator:
        if scheme.lower() not in SCHEMES:
            raise ConfigError(f"no source {scheme}://; there are {', '.join(f'{name}://' for name in SCHEMES)}")
        options = {"rtsp_transport": "tcp"} if scheme.lower() in ("rtsp", "rtsps") else {}
        return Video(uri, live=True, options=options)
    return Camera(uri, size=size) if uri.startswith("/dev/") else None


def _file(path: Path, on_trouble: Callable[[str], None] | None) -> Source:
    if path.is_dir() or path.suffix.lower() in SUFFIXES or not path.exists():
        return ImageFiles(path, on_trouble)
    if path.is_file():
        return Video(str(path), live=False, on_trouble=on_trouble)
    raise FrameError(f"{path} is neither a file nor a folder; raw frames from a pipe want --raw")
