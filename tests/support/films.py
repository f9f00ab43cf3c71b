"""Video files, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_film(path: Path, frames: np.ndarray, damaged: int | None = None) -> Path:
    """Frames uint8 ``[T, H, W, 3]`` as a Matroska file of FFV1, which loses nothing but what YUV does.

    The frame numbered ``damaged`` is no FFV1; those behind it can be read, as each is a key frame.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        stream.codec_context.gop_size = 1 if damaged is not None else stream.codec_context.gop_size
        packets = [p for frame in frames for p in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))]
        for number, packet in enumerate([*packets, *stream.encode()]):
            if number == damaged:
                broken = av.Packet(b"no picture")
                broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                broken.stream = stream
                container.mux(broken)
            else:
                container.mux(packet)
    return path
