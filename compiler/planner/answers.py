"""Whether the teacher's answers survive what is done to its features, its input or its outputs.

What an answer is depends on the network:

===========================  ==============================================  ===================================
output                       an answer                                       kept, if
===========================  ==============================================  ===================================
class scores ``[N, K]``      the top class of an image                       it is the same
class maps ``[N, K, h, w]``  the top class of a cell                         it is the same
anything else                every number, in units of its variance          1 - squared error / variance
===========================  ==============================================  ===================================

A recipe's ``[task]`` decides: a segmenter's cells, all float outputs of a detector. Without one the first output that is one
of the first two does; else all float outputs together. The third is not a part of answers that stay right, but falls from 1
in the same way, and the tables say which one was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from narrowcast.transport.tasks import DetectTask, SegmentTask, Task

Kind = Literal["classes", "cells", "outputs"]
MOST_CLASSES_OF_MAPS = 4096
WORDS: dict[Kind, str] = {
    "classes": "images with the teacher's top class",
    "cells": "cells with the teacher's top class",
    "outputs": "1 - squared error of the outputs / their variance",
}


def kind_of(outputs: Sequence[Tensor], task: Task | None = None, names: Sequence[str] = ()) -> tuple[Kind, int]:
    """What an answer of these outputs (batch first) is, and the number of the output that gives it (0 for ``outputs``).

    A detector's maps are no maps of classes: in most of their cells is nothing.
    """
    if isinstance(task, SegmentTask) and task.output in names:
        return "cells", names.index(task.output)
    if isinstance(task, DetectTask):
        return "outputs", 0
    for number, values in enumerate(outputs):
        if values.is_floating_point() and values.ndim == 2 and values.shape[1] > 1:
            return "classes", number
    for number, values in enumerate(outputs):
        if values.is_floating_point() and values.ndim == 4 and 1 < values.shape[1] <= MOST_CLASSES_OF_MAPS:
            return "cells", number
    return "outputs", 0


class Answers:
    """The teacher's answers on some images, to compare others with.

    Args:
        outputs: the teacher's, ``[N, ...]`` each, of all images.
        task: what they are, every output named; None where nothing is said about them.
        names: of the outputs, for the task.

    Attributes:
        kind: what an answer is.
        all_alike: there is but one answer to everything, as networks with random weights have: nothing is needed to keep it.
    """

    def __init__(self, outputs: Sequence[Tensor], task: Task | None = None, names: Sequence[str] = ()) -> None:
        self.kind, self._number = kind_of(outputs, task, names)
        self._wanted = [o.float() for o in outputs] if self.kind == "outputs" else [outputs[self._number].argmax(1)]
        self.all_alike = self.kind != "outputs" and bool((self._wanted[0] == self._wanted[0].flatten()[0]).all())
        self._floats = [o.is_floating_point() and float(o.float().var()) > 0 for o in outputs]

    def kept(self, outputs: Sequence[Tensor], start: int) -> float:
        """The sum over some images of what part of their answers is kept.

        Args:
            outputs: other outputs, for images ``start``, ``start + 1``, ...
            start: the number of the first image.

        Returns:
            between 0 and the number of images (``outputs``: not above it).
        """
        rows = slice(start, start + len(outputs[0]))
        if self.kind != "outputs":
            same = outputs[self._number].argmax(1) == self._wanted[0][rows]
            return float(same.float().flatten(1).mean(1).sum() if same.ndim > 1 else same.float().sum())
        parts = [
            (got.float() - wanted[rows]).square().sum() / (wanted.var() * wanted[0].numel())
            for got, wanted, counts in zip(outputs, self._wanted, self._floats, strict=True)
            if counts
        ]
        return len(outputs[0]) - float(torch.stack(parts).mean()) if parts else float(len(outputs[0]))
