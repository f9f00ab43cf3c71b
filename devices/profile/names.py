"""How ways are called in sentences."""

from __future__ import annotations

from narrowcast.devices.profile.figures import Way

_CODECS = {"jpeg": "JPEG", "webp": "WebP"}


def in_words(way: Way) -> str:
    """``the split at level 2``, ``JPEG of quality 75``, ``the whole network on the board``: without its link."""
    if way.kind == "split":
        return "the split" if way.level is None else f"the split at level {way.level}"
    if way.kind == "image":
        quality = "" if way.quality is None else f" of quality {way.quality}"
        return _CODECS.get(way.codec or "", "the image") + quality
    return {"local": "the whole network on the board", "exit": "the local exit on the board"}[way.kind]


def capital(text: str) -> str:
    """A sentence's first letter; an id keeps its own."""
    return text[:1].upper() + text[1:]
