"""Distillation targets: what the teacher makes of each image behind the cut, computed once and kept on disk.

Images come as they are at every step, so the teacher's features further on and its outputs are the same each time; without
them a step's forward pass behind the cut is run once, not twice.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from narrowcast.compiler.arrays import NUMBER_BYTES, has_float16, keep_float16
from narrowcast.compiler.bottlenecks.base import Targets
from narrowcast.compiler.progress import Progress

TARGET_BATCH = 32


class KeptTargets:
    """See :func:`keep_targets`."""

    def __init__(
        self, rows: npt.NDArray[np.float16], shapes: list[tuple[int, ...]], tree: pytree.TreeSpec, device: torch.device
    ) -> None:
        self._rows, self._shapes, self._tree, self._device = rows, shapes, tree, device

    def of(self, rows: npt.NDArray[np.int64]) -> Any:
        """Those of the images numbered ``rows``, float32, nested as the stage's targets are."""
        flat = torch.from_numpy(self._rows[rows].astype(np.float32)).to(self._device)
        parts = torch.split(flat, [math.prod(shape) for shape in self._shapes], 1)
        leaves = [part.reshape(len(rows), *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self._tree)


@torch.no_grad()
def keep_targets(
    targets: Targets,
    features: npt.NDArray[np.float16],
    files: Path,
    limit_bytes: float,
    device: torch.device,
    progress: Progress,
) -> KeptTargets | None:
    """Computes the targets of all images, once for all runs, and keeps them as float16.

    Args:
        targets: of a stage.
        features: the teacher's at the cut, ``[N, *cut.shape]``.
        files: where they are kept, without suffix.
        limit_bytes: what they may take.
        device: where they are computed, and wanted.
        progress: told how far it is.

    Returns:
        what knows them; None where they take more, or half of what is free on the disk, where float16 cannot hold them, and
        where they are not all numbers.
    """

    def compute(start: int, end: int) -> tuple[list[Any], pytree.TreeSpec]:
        rows = torch.from_numpy(features[start:end].astype(np.float32)).to(device)
        return pytree.tree_flatten(targets.compute(rows))

    leaves, tree = compute(0, 1)
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0 for leaf in leaves):
        return None
    shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
    rows = (len(features), sum(map(math.prod, shapes)))
    needed = math.prod(rows) * NUMBER_BYTES
    if needed > limit_bytes:
        return None
    if not has_float16(files, rows) and needed > shutil.disk_usage(files.parent).free / 2:
        return None  # they save time, and are no reason for a full disk

    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, len(features), TARGET_BATCH):
            leaves, _ = compute(start, min(start + TARGET_BATCH, len(features)))
            yield torch.cat([leaf.float().flatten(1) for leaf in leaves], 1).cpu().numpy()

    kept = keep_float16(files, rows, "teacher targets", chunks, progress)
    return None if kept is None else KeptTargets(kept, shapes, tree, device)
