"""timm on machines whose torchvision does not fit their torch: for benches and tests, never for the product."""

from __future__ import annotations

import sys
from typing import Any

_kept: list[Any] = []  # a torch.library.Library takes its operators with it when it goes


def import_timm() -> Any:
    """The package timm.

    Where torchvision's binary does not fit this torch (a CPU build), the two operators that its import looks for are
    declared, never run.

    Raises:
        ImportError: timm, or torchvision, which it imports, is not installed.
    """
    import torch

    try:
        import torchvision  # noqa: F401  (to see whether it can be)
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _kept.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
    import timm

    return timm
