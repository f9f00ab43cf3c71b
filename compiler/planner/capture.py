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
from narrowcast.compiler.nesting import flat, named, output_names
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.planner.answers import Answers
from narrowcast.compiler.progress import Progress
from narrowcast.transport.errors import TransportError
from narrowcast.transport.rpc.tensors import to_tensor
from narrowcast.transport.tasks import Task
from narrowcast.transport.tasks.answers import finish

BATCH = 16
# On disk, for the time of the planning.
MOST_BYTES = 6e9
LEAST_IMAGES = 16


class Captured:
    """What one pass over the images gave.

    Attributes:
        images: how many.
        answers: the teacher's.
        answer_bytes: what comes back over the link for one.
    """

    def __init__(
        self, images: int, answers: Answers, answer_bytes: float, features: dict[str, npt.NDArray[np.float32]]
    ) -> None:
        self.images = images
        self.answers = answers
        self.answer_bytes = answer_bytes
        self._features = features

    def batches(self, cut: Cut) -> Iterator[tuple[int, Tensor]]:
        """Features at a cut, float32 ``[n, *cut.shape]``, each batch with the number of its first image."""
        stored = self._features[cut.name]
        for start in range(0, self.images, BATCH):
            yield start, torch.from_numpy(np.array(stored[start : start + BATCH]))


def sent_bytes(task: Task | None, outputs: Any, size: tuple[int, int]) -> float:
    """What a server sends back for an image, by the (nested) outputs for some: where it decodes them, boxes or a map."""
    by_name = {name: _as_array(values) for name, values in named(outputs).items()}
    frames = finish(task, by_name, size)
    return sum(_on_the_wire(name, values) for frame in frames for name, values in frame.items()) / len(frames)


def _as_array(values: Tensor) -> npt.NDArray[Any]:
    """As numpy has it, which knows no bfloat16: half floats have as many bytes."""
    return (values.half() if values.dtype is torch.bfloat16 else values).detach().numpy()


def _on_the_wire(name: str, values: npt.NDArray[Any]) -> int:
    try:
        return len(to_tensor(name, values).data)
    except TransportError:  # of a kind that no server sends: it is planned all the same
        return values.nbytes


def capture(
    traced: Traced,
    normalize: Normalize,
    frames: npt.NDArray[np.uint8],
    cuts: Sequence[Cut],
    progress: Progress,
    task: Task | None = None,
) -> Captured:
    """Runs the teacher once on ``frames`` uint8 ``[N, H, W, 3]`` and keeps its features at every cut, and its answers.

    Features lie in temporary files, at most 6 GB in all: of large ones those of fewer images are taken. ``task``, with every
    output named, says what the answers are.
    """
    per_image = 4 * sum(prod(cut.shape) for cut in cuts)
    count = min(len(frames), max(LEAST_IMAGES, int(MOST_BYTES // max(1, per_image))))
    if count < len(frames):
        progress.note(f"{count} of {len(frames)} images: features of one take {per_image / 1e6:.0f} MB at all cuts")
    store = {cut.name: _on_disk((count, *cut.shape)) for cut in cuts}
    kept: list[tuple[Tensor, ...]] = []
    names, answer_bytes = list[str](), 0.0
    taps = _Taps(traced.module, {cut.node: store[cut.name] for cut in cuts})
    with torch.no_grad(), progress.task("features at every cut", count, "images") as under_way:
        for start in range(0, count, BATCH):
            images = torch.from_numpy(np.array(frames[start : min(start + BATCH, count)]))
            taps.start = start
            outputs = taps.run(normalize(images))
            if not kept:
                names = output_names(outputs)
                answer_bytes = sent_bytes(task, outputs, (frames.shape[1], frames.shape[2]))
            kept.append(flat(outputs))
            under_way.advance(len(images))
    answers = Answers([torch.cat(parts) for parts in zip(*kept, strict=True)], task, names)
    return Captured(count, answers, answer_bytes, store)


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
