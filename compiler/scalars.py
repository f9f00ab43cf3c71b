"""What a run's figures do over its steps, for TensorBoard: event files through tensorboardX, a writer without TensorFlow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

from narrowcast.transport.errors import MissingDependencyError

PREFIX = "train/"


class Scalars(Protocol):
    """Takes a run's figures."""

    def write(self, step: int, figures: dict[str, float], images: int) -> None:
        """The figures of a step that is over, and how many images it had."""

    def close(self) -> None:
        """Writes out what is left."""


class NoScalars:
    """Where nobody wants them."""

    def write(self, step: int, figures: dict[str, float], images: int) -> None:
        """See :class:`Scalars`."""

    def close(self) -> None:
        """See :class:`Scalars`."""


class TensorBoard:
    """Event files in ``folder``; there is none before the first step.

    A run that goes on after a kill takes back what was logged behind its checkpoint (``purge_step``).

    Raises:
        MissingDependencyError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._make = writer_class()
        self._folder = folder
        self._writer: Any = None
        self._last = time.monotonic()

    def write(self, step: int, figures: dict[str, float], images: int) -> None:
        """See :class:`Scalars`."""
        now = time.monotonic()
        if self._writer is None:
            # Files are named by the second: a run that is resumed within it would write over what came before.
            self._writer = self._make(str(self._folder), purge_step=step, filename_suffix=f".{step:09}.{os.getpid()}")
        else:  # the first step pays for what is set up once
            figures = {**figures, "images_per_second": images / max(now - self._last, 1e-9)}
        self._last = now
        for name, value in figures.items():
            self._writer.add_scalar(PREFIX + name, value, step)

    def close(self) -> None:
        """See :class:`Scalars`."""
        if self._writer is not None:
            self._writer.close()


def writer_class() -> Any:
    """TensorboardX's writer.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        hint = "pip install 'narrowcast[tensorboard]'"
        raise MissingDependencyError("[train] tensorboard", "tensorboardX", hint, error) from error
    return SummaryWriter
