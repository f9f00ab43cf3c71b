"""What image codecs did to the teacher's answers, kept on disk: it does not depend on the split.

Codecs take nearly all the time of an evaluation. Whoever evaluates a second bundle of the same teacher on the same images
(another rate, another preset) finds theirs here.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
from PIL import features

from narrowcast.compiler.codecs import ImageCodec
from narrowcast.compiler.ways import Tally, Way
from narrowcast.transport.files import replacing


class OutcomeCache:
    """Tallies of image codecs in a folder.

    Args:
        folder: is made when something is kept; may be deleted at any time.
        images: a digest of images, labels and input contract.
        teacher: a digest of the network.
    """

    def __init__(self, folder: Path, images: str, teacher: str) -> None:
        self.folder = folder
        self._given = f"{images} {teacher} Pillow {PIL.__version__} ONNX Runtime {onnxruntime.__version__}"

    def restore(self, codec: ImageCodec, tally: Tally) -> bool:
        """Fills in an empty tally from an earlier run; whether there was one."""
        try:
            with np.load(self._path(codec, tally.way), allow_pickle=False) as arrays:
                tally.restore(dict(arrays))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none there, or a damaged one
            return False
        return True

    def keep(self, codec: ImageCodec, tally: Tally) -> None:
        """Keeps a tally of all images."""
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **tally.arrays())
        with replacing(self._path(codec, tally.way)) as out:
            out.write(data.getvalue())

    def _path(self, codec: ImageCodec, way: Way) -> Path:
        library = features.version(codec.feature)
        settings = f"{way.name} {library} {way.scale} {sorted(codec.options(way.setting).items())}"
        digest = hashlib.sha256(f"{self._given}\n{settings}".encode()).hexdigest()
        return self.folder / f"{way.name}-{digest[:16]}.npz"
