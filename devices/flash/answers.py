"""What a board answers, checked: a board that was tampered with must not be able to make more of it than an error."""

from __future__ import annotations

from typing import Any, TypedDict, TypeVar

import msgspec

from narrowcast.devices.flash.errors import BoardError

T = TypeVar("T")


class Facts(TypedDict):
    """What a board says of itself before anything is installed (:mod:`narrowcast.devices.flash.agent.facts`)."""

    hostname: str
    architecture: str
    model: str
    compatible: list[str]
    os: str
    kernel: str
    glibc: str
    python: str
    executable: str
    venv: bool
    modules: dict[str, str]
    systemd: bool
    root: bool
    clock: float
    free_bytes: int
    power_sensors: list[str]


class Service(TypedDict):
    """The daemon, as its manager sees it."""

    manager: str
    active: bool
    pid: int | None
    restarts: int


class There(TypedDict):
    """What runs on a board (:mod:`narrowcast.devices.flash.agent.report`)."""

    current: dict[str, Any] | None
    previous: str | None
    previous_release: dict[str, Any] | None
    went_back: str | None
    going_back: dict[str, Any] | None
    pending: dict[str, Any] | None
    highest: dict[str, int]
    environments: list[str]
    edge: str | None
    tls: dict[str, str]
    service: Service
    trusted: list[dict[str, str]]


class Entry(TypedDict, total=False):
    """One line of a job's journal."""

    step: str
    state: str
    detail: str
    seconds: float
    release: str | None
    previous: str | None
    head: dict[str, Any] | None
    kind: str


def checked(found: Any, kind: type[T], board: str) -> T:
    """``found`` as a ``kind``, its texts fit for a terminal; what it has beside that is left out.

    Raises:
        BoardError: it is none.
    """
    try:
        return msgspec.convert(_clean(found), kind)
    except msgspec.ValidationError as error:
        raise BoardError(f"{board} answered what is no answer: {error}; is its agent of another release?") from error


def _clean(found: Any) -> Any:
    """Every text in an answer as :func:`printable` has it, but for the daemon's configuration, which is a file of lines."""
    if isinstance(found, str):
        return printable(found)
    if isinstance(found, dict):
        return {
            printable(str(key)): value if key == "edge" and isinstance(value, str) else _clean(value)
            for key, value in found.items()
        }
    return [_clean(one) for one in found] if isinstance(found, list) else found


def printable(text: str) -> str:
    """A board's line for a terminal: nothing in it may move the cursor, or pose as something else."""
    return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in text)
