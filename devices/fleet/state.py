"""How far a rollout is, on disk: what a rerun goes on from.

One JSON file beside the inventory (``fleet.state.json``), replaced whole at every step, so that it is right wherever the
machine is switched off. It holds one rollout: that of another bundle begins anew.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrowcast.devices.fleet.errors import FleetBusyError, FleetStateError
from narrowcast.devices.fleet.results import BoardResult
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json, to_json

SCHEMA = 1


class _Content(Settings, frozen=True):
    schema: int
    rollout: str
    boards: dict[str, BoardResult] = {}


class RolloutState:
    """The file, open for one rollout at a time; may be used from several threads.

    Args:
        path: the file.
        rollout: what is rolled out, such as a bundle's digest.
        boards: what earlier runs of it did, by name.
    """

    def __init__(self, path: Path, rollout: str, boards: dict[str, BoardResult]) -> None:
        self._path = path
        self._rollout = rollout
        self._boards = boards
        self._lock = threading.Lock()

    def done(self, name: str, wants: str) -> BoardResult | None:
        """What an earlier run did with a board that it was done with, in just this way; None where it was not."""
        found = self._boards.get(name)
        good = found is not None and found.state in ("done", "unchanged", "verified")
        return found if good and found is not None and found.wants == wants else None

    def put(self, result: BoardResult) -> None:
        """Keeps a board's result.

        Raises:
            FleetStateError: the file cannot be written.
        """
        with self._lock:
            self._boards[result.name] = result
            content = _Content(schema=SCHEMA, rollout=self._rollout, boards=self._boards)
            try:
                with replacing(self._path) as out:
                    out.write(to_json(content, indent=1) + b"\n")
            except OSError as error:
                raise FleetStateError(f"{self._path}, where the rollout stands, cannot be written: {error}") from error


@contextmanager
def open_state(path: Path, rollout: str, *, afresh: bool = False) -> Iterator[RolloutState]:
    """The state of a rollout, for this process alone.

    Args:
        path: the file; made where there is none.
        rollout: what is rolled out; what the file says of another one is forgotten.
        afresh: forget what it says of this one too.

    Raises:
        FleetBusyError: another process has it open.
        FleetStateError: the file is none of ours, or cannot be written.
    """
    with held(path):
        known = None if afresh else _read(path)
        yield RolloutState(path, rollout, dict(known.boards) if known and known.rollout == rollout else {})


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock of a state alone, for what is no rollout and must not meet one: the file is neither read nor written.

    Raises:
        FleetBusyError: another process has it.
        FleetStateError: it cannot be made.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    try:
        lock = lock_path.open("w")
    except OSError as error:
        raise FleetStateError(
            f"{lock_path}, which keeps rollouts apart, cannot be written: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FleetBusyError(f"another rollout holds {path}; wait until it has ended") from error
        yield


def _read(path: Path) -> _Content | None:
    try:
        found = from_json(_Content, path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FleetStateError(f"{path}, where the rollout stands, cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise FleetStateError(
            f"{error}; it is no rollout's state: remove it, or name another one with --state"
        ) from error
    if found.schema != SCHEMA:
        raise FleetStateError(f"{path} has schema {found.schema}; this release knows {SCHEMA}: remove it")
    return found
