"""Images as payloads."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image as Pillow

from narrowcast.transport import images
from narrowcast.transport.errors import FrameError, PayloadError
from narrowcast.transport.images import decode_image, encode_image
from narrowcast.transport.packet import CodecId


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Pillow.fromarray(rough).resize((width, height), Pillow.Resampling.BICUBIC))


def saved(kind: str, **options) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(smooth()).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("codec", [CodecId.JPEG, CodecId.WEBP])
def test_images_come_back_nearly_as_they_were(codec):
    frame = smooth()
    found = decode_image(encode_image(frame, codec, 90), codec)
    assert (found.shape, found.dtype) == (frame.shape, np.uint8)
    assert np.abs(found.astype(int) - frame).mean() < 6


def test_gray_and_progressive_and_transparent_become_rgb():
    gray = io.BytesIO()
    Pillow.fromarray(smooth()[..., 0]).save(gray, "JPEG")
    assert decode_image(gray.getvalue(), CodecId.JPEG).shape == (48, 64, 3)
    assert decode_image(saved("JPEG", progressive=True), CodecId.JPEG).shape == (48, 64, 3)
    clear = io.BytesIO()
    Pillow.fromarray(np.dstack([smooth(), np.zeros((48, 64), np.uint8)])).save(clear, "WEBP", lossless=True, exact=True)
    assert np.array_equal(decode_image(clear.getvalue(), CodecId.WEBP), smooth())


@pytest.mark.parametrize(
    ("payload", "codec"),
    [
        (b"", CodecId.JPEG),
        (b"nonsense", CodecId.WEBP),
        (saved("JPEG"), CodecId.WEBP),
        (saved("WEBP"), CodecId.JPEG),
        (saved("PNG"), CodecId.JPEG),
        (saved("JPEG")[:-200], CodecId.JPEG),
        (saved("WEBP")[:-60], CodecId.WEBP),
    ],
)
def test_what_is_no_whole_file_of_its_format(payload, codec):
    with pytest.raises(PayloadError, match=f"no whole {codec.name} file"):
        decode_image(payload, codec)


def test_pixels_are_bounded_before_they_are_decoded():
    """The header of a JPEG, with its size changed."""
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 8_000, 8_000)
    with pytest.raises(PayloadError, match="8000 x 8000 pixels"):
        decode_image(bytes(data), CodecId.JPEG)
    with pytest.raises(PayloadError, match="limit is 100 pixels"):
        decode_image(saved("WEBP"), CodecId.WEBP, max_pixels=100)


def test_a_jpeg_with_a_thousand_scans_is_refused():
    """Each scan costs the sender ten bytes, and the decoder a pass over the image."""
    data = saved("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(PayloadError, match="more than 64 scans"):
        decode_image(data[:at] + data[at:-2] * 1000 + data[-2:], CodecId.JPEG)


def test_an_animation_is_refused():
    out = io.BytesIO()
    pictures = [Pillow.fromarray(smooth()), Pillow.fromarray(255 - smooth())]
    pictures[0].save(out, "WEBP", save_all=True, append_images=pictures[1:])
    with pytest.raises(PayloadError, match="more than one frame"):
        decode_image(out.getvalue(), CodecId.WEBP)


def test_damaged_files_are_pictures_or_payload_errors():
    random = np.random.default_rng(1)
    for codec in (CodecId.JPEG, CodecId.WEBP):
        data = encode_image(smooth(), codec)
        for _ in range(150):
            bent = bytearray(data)
            for position in random.integers(0, len(data), 4):
                bent[position] = random.integers(256)
            try:
                decode_image(bytes(bent), codec, max_pixels=1_000_000)
            except PayloadError:
                continue


def test_a_symbols_codec_is_none_for_images():
    with pytest.raises(PayloadError, match="codec RANS"):
        decode_image(saved("JPEG"), CodecId.RANS)
    with pytest.raises(FrameError, match="not as RANS"):
        encode_image(smooth(), CodecId.RANS)


@pytest.mark.parametrize(
    ("frame", "quality", "said"),
    [
        (smooth()[..., 0], 75, "uint8"),
        (smooth().astype(np.float32), 75, "uint8"),
        (smooth(), 0, "1..100"),
        (np.zeros((20_000, 1, 3), np.uint8), 75, "does not become WEBP"),
    ],
)
def test_frames_that_cannot_be_sent(frame, quality, said, monkeypatch):
    with pytest.raises(FrameError, match=said):
        encode_image(frame, CodecId.WEBP, quality)


def test_the_sender_keeps_to_the_limits(monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FrameError, match="limit is 100"):
        encode_image(smooth())
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PAYLOAD_BYTES", 100)
    with pytest.raises(FrameError, match="limit is 100"):
        encode_image(smooth())
