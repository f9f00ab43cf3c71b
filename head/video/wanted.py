"""Whether a source's frames are sent by reference to earlier ones."""

from __future__ import annotations

from typing import Literal

from narrowcast.head.offload import Offload, Way
from narrowcast.head.sources import is_film
from narrowcast.transport.bundle import Bundle

VideoChoice = Literal["auto", "on", "off"]


def by_reference(
    wanted: VideoChoice, bundle: Bundle, uri: str, *, watch: bool = False, way: Way = "symbols", offload: Offload | None
) -> bool:
    """As ``docs/video.md`` has it.

    Args:
        wanted: ``auto`` for where it pays: the bundle has the tables, symbols are sent, and the frames follow one another.
        bundle: the model.
        uri: of the source.
        watch: see :func:`narrowcast.head.sources.open_source`.
        way: what is sent.
        offload: where frames are answered.
    """
    if wanted != "auto":
        return wanted == "on"
    sends_symbols = way == "symbols" and offload not in ("image", "local")
    return bundle.has("video") and sends_symbols and is_film(uri, watch=watch)
