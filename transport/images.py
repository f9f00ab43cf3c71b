"""Images as payloads: a JPEG or WebP file in a packet of kind IMAGE (``docs/wire-format.md``).

The bytes are untrusted: only these two formats are tried, and size, pixels and scans are bounded before any pixel is
decoded.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from narrowcast.transport.contract import Image
from narrowcast.transport.errors import FrameError, MissingDependencyError, PayloadError
from narrowcast.transport.packet import IMAGE_CODECS, MAX_PAYLOAD_BYTES, CodecId

# 8K UHD. What decodes it needs about 7 bytes a pixel for a moment.
MAX_IMAGE_PIXELS = 7680 * 4320
# Real progressive JPEGs have about ten; each one costs the decoder a pass over all pixels, and the sender a few bytes.
MAX_SCANS = 64
_FORMATS = {CodecId.JPEG: "JPEG", CodecId.WEBP: "WEBP"}
_START_OF_SCAN = b"\xff\xda"


def encode_image(frame: Image, codec: CodecId = CodecId.JPEG, quality: int = 75) -> bytes:
    """A frame as the payload of a packet of kind IMAGE.

    Args:
        frame: uint8 ``[H, W, 3]`` RGB.
        codec: JPEG or WEBP.
        quality: 1..100, as Pillow understands it.

    Raises:
        FrameError: not such a frame, more than :data:`MAX_IMAGE_PIXELS`, or too large as a file.
        MissingDependencyError: Pillow is not installed.
    """
    if codec not in IMAGE_CODECS:
        raise FrameError(f"images are sent as JPEG or WEBP, not as {codec.name}")
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise FrameError("an image to be sent is uint8 [H, W, 3] in RGB")
    if frame.shape[0] * frame.shape[1] > MAX_IMAGE_PIXELS:
        raise FrameError(f"an image of {frame.shape[1]} x {frame.shape[0]} pixels; the limit is {MAX_IMAGE_PIXELS}")
    if not 1 <= quality <= 100:
        raise FrameError(f"an image's quality is {quality}; it lies in 1..100")
    out = io.BytesIO()
    try:
        _pillow().fromarray(np.ascontiguousarray(frame)).save(out, _FORMATS[codec], quality=quality)
    except (OSError, ValueError) as error:  # WebP's sides end at 16,383
        raise FrameError(
            f"an image of {frame.shape[1]} x {frame.shape[0]} pixels does not become {codec.name}: {error}"
        ) from error
    data = out.getvalue()
    if len(data) > MAX_PAYLOAD_BYTES:
        raise FrameError(f"an image of {len(data)} bytes as {codec.name}; the limit is {MAX_PAYLOAD_BYTES}")
    return data


def decode_image(payload: bytes, codec: CodecId, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image:
    """The payload of a packet of kind IMAGE as uint8 ``[H, W, 3]`` RGB. What the file says of orientation is ignored.

    Raises:
        PayloadError: not a file of that format, damaged, truncated, animated, or over a limit.
        MissingDependencyError: Pillow is not installed.
    """
    if codec not in IMAGE_CODECS:
        raise PayloadError(f"a packet of kind IMAGE with codec {codec.name}")
    if codec is CodecId.JPEG and payload.count(_START_OF_SCAN) > MAX_SCANS:
        raise PayloadError(f"a JPEG of more than {MAX_SCANS} scans")
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(payload), formats=[_FORMATS[codec]]) as picture:
            if picture.width * picture.height > max_pixels:
                raise PayloadError(
                    f"an image of {picture.width} x {picture.height} pixels; the limit is {max_pixels} pixels"
                )
            if getattr(picture, "n_frames", 1) != 1:
                raise PayloadError("an image with more than one frame")
            return np.asarray(picture.convert("RGB"))
    except PayloadError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
        raise PayloadError(f"the payload of {len(payload)} bytes is no whole {codec.name} file: {error}") from error


def image_size(payload: bytes, codec: CodecId) -> tuple[int, int]:
    """Height and width of an image that :func:`decode_image` takes, by its header; no pixel is decoded.

    Raises:
        PayloadError: not a file of that format.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        with _pillow().open(io.BytesIO(payload), formats=[_FORMATS[codec]]) as picture:
            return picture.height, picture.width
    except MissingDependencyError:
        raise
    except Exception as error:  # as above
        raise PayloadError(f"the payload of {len(payload)} bytes is no {codec.name} file: {error}") from error


def _pillow() -> Any:
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise MissingDependencyError("sending images", "Pillow", "pip install 'narrowcast[images]'", error) from error
    return Pillow
