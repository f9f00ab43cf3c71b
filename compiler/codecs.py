"""Image codecs, as the baseline: what sending the image costs, and what it does to the teacher's answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from narrowcast.transport.contract import Image


class ImageCodec(NamedTuple):
    """A lossless or lossy image codec.

    Attributes:
        name: ``png``, ``jpeg``, ``webp``.
        qualities: to try, lowest first; (None,) for a lossless codec.
        options: what Pillow's ``save`` gets for a quality.
    """

    name: str
    qualities: tuple[int | None, ...]
    options: Callable[[int | None], dict[str, Any]]

    def transcode(self, image: Image, quality: int | None) -> tuple[Image, int]:
        """uint8 ``[H, W, 3]`` RGB as it comes out of the codec, and the bytes it took."""
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, self.name, **self.options(quality))
        with Pillow.open(io.BytesIO(buffer.getvalue())) as decoded:
            return np.asarray(decoded.convert("RGB")), buffer.getbuffer().nbytes


QUALITIES = (2, 5, 10, 15, 20, 30, 40, 50, 60, 75, 85, 95)

CODECS = (
    ImageCodec("png", (None,), lambda quality: {}),
    ImageCodec("jpeg", QUALITIES, lambda quality: {"quality": quality, "optimize": True}),
    ImageCodec("webp", QUALITIES, lambda quality: {"quality": quality, "method": 6}),
)
