"""How long-running steps tell where they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from narrowcast.transport.files import replacing

SKIPPED_SHOWN = 3


class Task(Protocol):
    """One running step."""

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """``done`` more units are done; ``figures`` replace those shown."""


class Progress(Protocol):
    """Where steps are announced. The command line draws bars; :data:`SILENT` does nothing."""

    def task(self, title: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Announces a step of ``total`` units; leaving the context ends it."""

    def note(self, line: str) -> None:
        """Says something worth keeping."""


class _Silent:
    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        yield self

    def note(self, line: str) -> None:
        pass

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        pass


SILENT: Progress = _Silent()


def note_skipped(progress: Progress, headline: str, skipped: Sequence[str]) -> None:
    """Says that images were left out, and what the first of them were."""
    progress.note(headline)
    for line in skipped[:SKIPPED_SHOWN]:
        progress.note(f"  {line}")


def list_skipped(progress: Progress, headline: str, skipped: Sequence[str], path: Path) -> None:
    """:func:`note_skipped`, with all of them listed in a file; does nothing where there are none."""
    if not skipped:
        return
    with replacing(path) as out:
        out.write("".join(f"{line}\n" for line in skipped).encode())
    note_skipped(progress, f"{headline}; all are listed in {path}", skipped)
