"""Image codecs, as the baseline: what sending the image costs, and what it does to the teacher's answers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import features

from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import nearest


class ImageCodec(NamedTuple):
    """A lossless or lossy image codec.

    Attributes:
        name: ``png``, ``jpeg``, ``webp``, ``avif``.
        feature: Pillow's name of the library that it needs.
        qualities: to try, lowest first; (None,) for a lossless codec.
        scales: to try: the side of the image that is sent, as a part of the network's input.
        options: what Pillow's ``save`` gets for a quality.
    """

    name: str
    feature: str
    qualities: tuple[int | None, ...]
    scales: tuple[float, ...]
    options: Callable[[int | None], dict[str, Any]]

    @property
    def available(self) -> bool:
        """Whether this machine's Pillow has it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older Pillow does not know the name
            return bool(features.check(self.feature))

    def transcode(self, image: Image, quality: int | None, scale: float = 1.0) -> tuple[Image, int]:
        """What arrives when the image is sent, and what it costs.

        It is scaled down (Lanczos), encoded and decoded, and scaled back up (bicubic).

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            quality: one that the codec takes.
            scale: of the sides, in (0, 1].

        Returns:
            uint8 ``[H, W, 3]`` RGB, and the bytes of the image file.
        """
        picture, buffer = Pillow.fromarray(image), io.BytesIO()
        width, height = picture.size
        sent = max(1, round(width * scale)), max(1, round(height * scale))
        small = picture if sent == picture.size else picture.resize(sent, Pillow.Resampling.LANCZOS)
        small.save(buffer, self.name, **self.options(quality))
        with Pillow.open(io.BytesIO(buffer.getvalue())) as decoded:
            arrived = decoded.convert("RGB")
        if sent != picture.size:
            arrived = arrived.resize(picture.size, Pillow.Resampling.BICUBIC)
        return np.asarray(arrived), buffer.getbuffer().nbytes


QUALITIES = (5, 10, 20, 30, 40, 50, 60, 75, 90)
SCALES = (1.0, 0.75, 0.5)

# Effort is at or above each library's own choice: JPEG's code tables are fitted, WebP tries its slowest method, AVIF is at
# Pillow's (speed 4 takes five times as long for hardly fewer bytes).
# What the edge client sends by default (``--way image``), for the bundle's figures.
SENT_IMAGES = tuple(
    ImageCodec(name, feature, (75,), (1.0,), lambda quality: {"quality": quality})
    for name, feature in (("jpeg", "jpg"), ("webp", "webp"))
)
CODECS = (
    ImageCodec("png", "zlib", (None,), (1.0,), lambda quality: {}),
    ImageCodec("jpeg", "jpg", QUALITIES, SCALES, lambda quality: {"quality": quality, "optimize": True}),
    ImageCodec("webp", "webp", QUALITIES, SCALES, lambda quality: {"quality": quality, "method": 6}),
    # One thread an image: images are encoded side by side. Its quality 5 is hardly smaller than its 10.
    ImageCodec(
        "avif", "avif", QUALITIES[1:], SCALES, lambda quality: {"quality": quality, "speed": 6, "max_threads": 1}
    ),
)


def available(codecs: Sequence[ImageCodec]) -> tuple[list[ImageCodec], list[str]]:
    """The codecs that this machine's Pillow has, and the names of the others."""
    there = [codec for codec in codecs if codec.available]
    return there, [codec.name for codec in codecs if codec not in there]


def codecs_named(names: str | None) -> list[ImageCodec]:
    """The codecs of ``jpeg,avif``; all for None, none of them for ``none``.

    Raises:
        ConfigError: there is no such codec.
    """
    if names is None:
        return list(CODECS)
    wanted = [] if names.strip() == "none" else [name.strip() for name in names.split(",")]
    known = {codec.name: codec for codec in CODECS}
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"no image codec {name!r} (there are {', '.join(known)}, or none){nearest(name, list(known))}"
            )
    return [codec for name, codec in known.items() if name in wanted]
