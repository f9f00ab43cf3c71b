"""Frames of a video: predicted from one that the other end has answered, or skipped where nothing has changed.

``docs/video.md`` tells how it works, ``docs/wire-format.md`` the arithmetic and the bytes.
"""

from narrowcast.transport.video.codec import VideoCodec
from narrowcast.transport.video.memory import Memory, change_between, memory_of_key, remembered
from narrowcast.transport.video.tables import VideoTables

__all__ = ["Memory", "VideoCodec", "VideoTables", "change_between", "memory_of_key", "remembered"]
