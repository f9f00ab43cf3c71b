"""``status.json``: how a daemon is, for whoever looks at it from outside (a health gate, a person), about once a second."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from narrowcast.head.accounting import Account
from narrowcast.transport.files import replacing

log = logging.getLogger(__name__)
FILE = "status.json"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ModelStatus(msgspec.Struct, frozen=True):
    """What runs: the bundle's name and release, and its codec's fingerprint in hex."""

    name: str
    release: int
    fingerprint: str


class LedgerStatus(msgspec.Struct, frozen=True):
    """An :class:`~narrowcast.head.accounting.Account`: ``captured`` is the sum of the others."""

    captured: int = 0
    answered: int = 0
    local: int = 0
    spooled: int = 0
    dropped: dict[str, int] = {}
    under_way: int = 0

    @classmethod
    def of(cls, account: Account) -> LedgerStatus:
        """The same counts."""
        return cls(
            captured=account.captured, answered=account.answered, local=account.local, spooled=account.spooled,
            dropped=account.dropped, under_way=account.under_way,
        )  # fmt: skip

    def __add__(self, other: LedgerStatus) -> LedgerStatus:
        """Of both."""
        reasons = sorted({*self.dropped, *other.dropped})
        return LedgerStatus(
            captured=self.captured + other.captured, answered=self.answered + other.answered,
            local=self.local + other.local, spooled=self.spooled + other.spooled,
            dropped={reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons},
            under_way=self.under_way + other.under_way,
        )  # fmt: skip


class SourceStatus(msgspec.Struct, frozen=True):
    """One source; the ages as in :class:`Status`.

    Attributes:
        running: it has not ended.
        stuck_s: for how long a frame of it has not got on although it could.
        openings: of the camera or stream, the first included.
        spool_waiting, spool_bytes: None where it does not spool.
    """

    running: bool
    ledger: LedgerStatus
    server: str | None
    answer_age_s: float | None
    frame_age_s: float | None
    level: int | None
    stuck_s: float
    openings: int
    spool_waiting: int | None = None
    spool_bytes: int | None = None


class Status(msgspec.Struct, frozen=True):
    """A daemon at one moment.

    Attributes:
        pid: its process.
        started_at: RFC 3339, UTC.
        model: that new frames go through.
        ledger: what became of all frames of all sources since the start.
        server: that frames go to, ``HOST:PORT``; null while there is no link.
        answer_age_s: since a server last answered a frame; null if none has.
        frame_age_s: since a source last brought one; null if none has.
        level: the last frame's; null if there was none.
        rss_bytes: resident memory; null where the system does not tell.
        ready: it has started, is not ending, and no frame is stuck in it.
        sources: by name.
        refused: why the bundle or the settings on disk are not those that run; null where they are.
    """

    pid: int
    started_at: str
    model: ModelStatus
    ledger: LedgerStatus
    server: str | None
    answer_age_s: float | None
    frame_age_s: float | None
    level: int | None
    rss_bytes: int | None
    ready: bool
    sources: dict[str, SourceStatus] = {}
    refused: str | None = None

    def to_json(self) -> bytes:
        """UTF-8, with a line break at the end."""
        return msgspec.json.encode(self) + b"\n"


def rfc3339(seconds: float) -> str:
    """A moment of ``time.time()``."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rss_bytes() -> int | None:
    """This process's resident memory; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


class StatusFile:
    """The file, replaced as a whole each time. A disk that does not take it is told of once, and holds nothing up.

    Args:
        folder: ``$RUNTIME_DIRECTORY``, as a rule: memory, not a card that wears out.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._failed = False

    def write(self, status: Status) -> None:
        """Replaces it. Not forced to the disk: after a power loss nobody wants to know how it was."""
        try:
            with replacing(self.path, mode=0o644, sync=False) as out:
                out.write(status.to_json())
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written: %s", self.path, error.strerror or error)
            self._failed = True
            return
        self._failed = False

    def remove(self) -> None:
        """There is no daemon any more."""
        self.path.unlink(missing_ok=True)
