"""The teacher's features at every cut, from one pass over some images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from narrowcast.compiler.cuts import Cut
from narrowcast.compiler.cuts.trace import Traced
from narrowcast.compiler.modules import flat
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.planner.answers import Answers
from narrowcast.compiler.progress import Progress

BATCH = 16
# On disk, for the time of the planning.
MOST_BYTES = 6e9
LEAST_IMAGES = 16


class Captured:
    """What one pass over the images gave.

    Attributes:
        images: how many.
        answers: the teacher's.
        answer_bytes: of one image's outputs, as they are: what comes back over the link.
    """

    def __init__(self, images: int, outputs: Sequence[Tensor], features: dict[str, npt.NDArray[np.float32]]) -> None:
        self.images = images
        self.answers = Answers(outputs)
        self.answer_bytes = sum(o[0].numel() * o.element_size() for o in outputs)
        self._features = features

    def batches(self, cut: Cut) -> Iterator[tuple[int, Tensor]]:
        """Features at a cut, float32 ``[n, *cut.shape]``, each batch with the number of its first image."""
        stored = self._features[cut.name]
        for start in range(0, self.images, BATCH):
            yield start, torch.from_numpy(np.array(stored[start : start + BATCH]))


def capture(
    traced: Traced, normalize: Normalize, frames: npt.NDArray[np.uint8], cuts: Sequence[Cut], progress: Progress
) -> Captured:
    """Runs the teacher once on ``frames`` uint8 ``[N, H, W, 3]`` and keeps its features at every cut, and its answers.

    Features lie in temporary files, at most 6 GB in all: of large ones those of fewer images are taken.
    """
    per_image = 4 * sum(prod(cut.shape) for cut in cuts)
    count = min(len(frames), max(LEAST_IMAGES, int(MOST_BYTES // max(1, per_image))))
    if count < len(frames):
        progress.note(f"{count} of {len(frames)} images: features of one take {per_image / 1e6:.0f} MB at all cuts")
    store = {cut.name: _on_disk((count, *cut.shape)) for cut in cuts}
    kept: list[tuple[Tensor, ...]] = []
    taps = _Taps(traced.module, {cut.node: store[cut.name] for cut in cuts})
    with torch.no_grad(), progress.task("features at every cut", count, "images") as task:
        for start in range(0, count, BATCH):
            images = torch.from_numpy(np.array(frames[start : min(start + BATCH, count)]))
            taps.start = start
            kept.append(flat(taps.run(normalize(images))))
            task.advance(len(images))
    outputs = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    return Captured(count, outputs, store)


class _Taps(fx.Interpreter):
    """Runs a graph and keeps what some of its nodes give, before a later one can change it in place."""

    def __init__(self, module: fx.GraphModule, stores: dict[fx.Node, npt.NDArray[np.float32]]) -> None:
        super().__init__(module)
        self.start = 0
        self._stores = stores

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._stores:
            self._stores[n][self.start : self.start + len(result)] = result.float().numpy()
        return result


def _on_disk(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array in a file without a name, gone with the array.

    Its room is taken at once: a write to a mapped page for which the disk has none would kill the process.

    Raises:
        OSError: the disk has not so much room.
    """
    with tempfile.TemporaryFile(prefix="narrowcast-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, prod(shape) * 4))
        return np.memmap(file, np.float32, "w+", shape=shape)
