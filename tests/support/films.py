"""Video files, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_film(path: Path, frames: np.ndarray) -> Path:
    """Frames uint8 ``[T, H, W, 3]`` as a Matroska file of FFV1, which loses nothing but what YUV does."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
