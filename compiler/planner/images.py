"""Sending the image: the fewest bytes with which the teacher still gives its answers, and what coding them takes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from narrowcast.compiler.codecs import CODECS, ImageCodec
from narrowcast.compiler.planner.answers import Answers
from narrowcast.compiler.planner.timing import median_ms
from narrowcast.compiler.progress import Progress

BATCH = 16
QUALITIES = (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
TIMED_IMAGES = 4

Frames = npt.NDArray[np.uint8]


class SentImage(NamedTuple):
    """One way of sending the image.

    Attributes:
        codec: with its quality, as ``jpeg, quality 40``; ``raw`` for the pixels themselves.
        kept: the part of the answers that stay right; None where no images were given.
        mean_bytes: of one image.
        encode_ms: on this machine, one thread.
        decode_ms: on this machine, one thread.
    """

    codec: str
    kept: float | None
    mean_bytes: float
    encode_ms: float
    decode_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def raw_image(size: tuple[int, int]) -> SentImage:
    """The pixels as they are: all that can be said without images."""
    return SentImage("raw", None, 3.0 * size[0] * size[1], 0.0, 0.0)


def sent_images(
    network: Callable[[Tensor], Sequence[Tensor]], frames: Frames, answers: Answers, keep: float, progress: Progress
) -> list[SentImage]:
    """Each image codec at its lowest quality that keeps ``keep`` of the answers; PNG, which keeps all, is always there.

    Args:
        network: uint8 ``[N, H, W, 3]`` to the teacher's outputs.
        frames: uint8 ``[N, H, W, 3]``.
        answers: the teacher's on the same frames.
        keep: in (0, 1].
        progress: told where it is.
    """
    found = []
    codecs = [_as_boards_do(codec) for codec in CODECS if codec.available and codec.name in ("png", "jpeg", "webp")]
    with progress.task("sending the image", len(codecs), "codecs") as task:
        for codec in codecs:
            if (sent := _lowest(codec, network, frames, answers, keep)) is not None:
                found.append(sent)
            task.advance(1)
    return found


def _as_boards_do(codec: ImageCodec) -> ImageCodec:
    """At the library's own effort: a board has to keep up with its camera."""
    if codec.name == "png":
        return codec
    return codec._replace(options=lambda quality: {"quality": quality}, qualities=QUALITIES)


def _lowest(
    codec: ImageCodec, network: Callable[[Tensor], Sequence[Tensor]], frames: Frames, answers: Answers, keep: float
) -> SentImage | None:
    """The codec at its lowest quality that keeps enough, found by halving; None where its highest does not."""
    if codec.qualities == (None,):
        return _timed(codec, None, 1.0, float(np.mean([codec.transcode(frame, None)[1] for frame in frames])), frames)
    low, high, best = 0, len(codec.qualities) - 1, None
    while low <= high:
        middle = (low + high) // 2
        kept, mean_bytes = _try(codec, codec.qualities[middle], network, frames, answers)
        if kept >= keep:
            best, high = (codec.qualities[middle], kept, mean_bytes), middle - 1
        else:
            low = middle + 1
    return None if best is None else _timed(codec, *best, frames)


def _try(
    codec: ImageCodec,
    quality: int | None,
    network: Callable[[Tensor], Sequence[Tensor]],
    frames: Frames,
    answers: Answers,
) -> tuple[float, float]:
    """The part of the answers that a quality keeps, and its mean bytes."""
    right, sizes = 0.0, list[int]()
    for start in range(0, len(frames), BATCH):
        arrived, size = zip(*(codec.transcode(f, quality) for f in frames[start : start + BATCH]), strict=True)
        sizes += size
        right += answers.kept(network(torch.from_numpy(np.stack(arrived))), start)
    return right / len(frames), float(np.mean(sizes))


def _timed(codec: ImageCodec, quality: int | None, kept: float, mean_bytes: float, frames: Frames) -> SentImage:
    pictures = [Pillow.fromarray(frame) for frame in frames[:TIMED_IMAGES]]
    files = [_file(codec, quality, picture) for picture in pictures]
    encode = median_ms(lambda: [_file(codec, quality, picture) for picture in pictures]) / len(pictures)
    decode = median_ms(lambda: [np.asarray(Pillow.open(io.BytesIO(file)).convert("RGB")) for file in files]) / len(
        files
    )
    name = codec.name if quality is None else f"{codec.name}, quality {quality}"
    return SentImage(name, kept, mean_bytes, round(encode, 3), round(decode, 3))


def _file(codec: ImageCodec, quality: int | None, picture: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, codec.name, **codec.options(quality))
    return buffer.getvalue()
