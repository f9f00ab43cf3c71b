"""Log lines on stderr; with the priority in front where the journal reads them (sd-daemon(3))."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def for_journal(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Whether what is written to ``stream`` goes to the journal: it says which file it is (``JOURNAL_STREAM``)."""
    try:
        state = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (os.environ if environment is None else environment).get(
        "JOURNAL_STREAM"
    ) == f"{state.st_dev}:{state.st_ino}"


class JournalFormatter(logging.Formatter):
    """One line each, ``<4>text``; every line of a traceback has its priority."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def set_up(*, quiet: bool = False) -> None:
    """Sets the process's logging up: the journal has times of its own, people get one."""
    handler = logging.StreamHandler(sys.stderr)
    if for_journal(sys.stderr):
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler], force=True)
