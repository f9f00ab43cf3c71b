"""``flash``, ``status``, ``rollback``, ``logs`` and ``trust``: what the command line and fleets call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from narrowcast.devices.flash.answers import checked, printable
from narrowcast.devices.flash.board import connected, hello, layout_of, services_of
from narrowcast.devices.flash.flashing import Flashing
from narrowcast.devices.flash.going_back import GoingBack
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import Connection, FlashOptions, Services
from narrowcast.devices.flash.release import flashed_by
from narrowcast.devices.flash.report import BoardStatus, FlashReport
from narrowcast.devices.targets import DeployPaths, Target, load_target
from narrowcast.transport.bundle import Bundle, PublicKey


def flash(
    bundle: str | Path | Bundle,
    destination: str,
    target: str | Path | Target | None = None,
    *,
    options: FlashOptions | None = None,
    observer: Observer | None = None,
) -> FlashReport:
    """Puts a bundle on a board, with its environment, and lets the board switch to it where it is healthy.

    Args:
        bundle: the file, which is verified first, or one that is open.
        destination: ``user@host``, a name of ``~/.ssh/config``, or ``ssh://user@host:port``.
        target: kind of board: a name, a file of one's own, or a target; what it is recognised as if None.
        options: what is put there, and how.
        observer: is told of every step, and asked what only a person may decide.

    Returns:
        what was done; its ``outcome`` is ``planned``, ``committed`` or ``unchanged``.

    Raises:
        FlashError: one of its subclasses; RolledBackError where the new release was not healthy and the board went back.
        BundleError, KeyFileError, CertificateError, TargetError: what was given cannot be used.
    """
    options, observer = options or FlashOptions(), observer or Observer()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, "device", trusted=options.trusted, allow_unsigned=options.allow_unsigned)
    if target is not None and not isinstance(target, Target):
        target = load_target(target)
    return Flashing(bundle, destination, target, options, observer).run()


def status(
    destination: str,
    *,
    connection: Connection | None = None,
    target: str | Path | None = None,
    prefix: str = "",
    services: Services = "auto",
    observer: Observer | None = None,
) -> BoardStatus:
    """What runs on a board; nothing is changed there.

    Args:
        destination: as of :func:`flash`.
        connection: to the board.
        target: whose paths count; the usual ones if None.
        prefix: as it was flashed with.
        services: likewise.
        observer: is asked about an unknown host key.

    Raises:
        FlashError: the board cannot be asked.
    """
    layout = layout_of(prefix, _paths(target))
    with connected(destination, connection or Connection(), layout, observer or Observer()) as (_, _, session):
        manager = services_of(services, hello(session, layout), prefix)
        return checked(
            {**session.call("status", services=manager), "destination": destination}, BoardStatus, destination
        )


def rollback(
    destination: str,
    *,
    options: FlashOptions | None = None,
    target: str | Path | None = None,
    once: bool = False,
    observer: Observer | None = None,
) -> FlashReport:
    """Back to the release before, through the same gate: where that is not healthy either, the present one stays.

    The release before, of a board that went back, is the one that it left: a second call goes there again. A rollback that
    is under way is not begun again, but listened to.

    Args:
        destination: as of :func:`flash`.
        options: of these, connection, prefix, services, ``keep``, ``dry_run`` and the gate's count. A gate that is not named
            is the one that the release was flashed with.
        target: whose paths count; the usual ones if None.
        once: a board that went back already, with nothing flashed since, stays where it is.
        observer: is told of every step.

    Returns:
        what was done; its ``outcome`` is ``planned`` (a dry run), ``committed`` or ``unchanged`` (with ``once``).

    Raises:
        NoReleaseError: there is nothing to go back to.
        RolledBackError: the release before is not healthy.
        FlashError: something else went wrong.
    """
    going = GoingBack(destination, options or FlashOptions(), _paths(target), observer or Observer(), once=once)
    return going.run()


def logs(
    destination: str,
    *,
    connection: Connection | None = None,
    target: str | Path | None = None,
    prefix: str = "",
    services: Services = "auto",
    lines: int = 200,
    following: bool = False,
    observer: Observer | None = None,
) -> Iterator[str]:
    """The daemon's last lines on a board; with ``following`` those to come as well. Raises what :func:`status` does."""
    layout = layout_of(prefix, _paths(target))
    with connected(destination, connection or Connection(), layout, observer or Observer()) as (_, _, session):
        manager = services_of(services, hello(session, layout), prefix)
        for event in session.events("logs", services=manager, lines=lines, follow=following):
            if "line" in event:
                yield printable(str(event["line"]))


def trust(
    destination: str,
    *,
    add: PublicKey | None = None,
    remove: str = "",
    connection: Connection | None = None,
    target: str | Path | None = None,
    prefix: str = "",
    observer: Observer | None = None,
) -> list[dict[str, str]]:
    """Which keys' bundles a board takes: adds one, takes one away (by its id), or only tells.

    Returns:
        ``id`` and ``name`` of each.

    Raises:
        BoardVerifyError: it cannot be taken away: the last one, or the one whose release runs.
        FlashError: as of :func:`status`.
    """
    layout = layout_of(prefix, _paths(target))
    with connected(destination, connection or Connection(), layout, observer or Observer()) as (_, _, session):
        hello(session, layout)
        if add is not None or remove:
            session.call("lock", by=flashed_by())
        found = session.call("trust", add=add.line if add else "", remove=remove)
        return checked(found, list[dict[str, str]], destination)


def _paths(target: str | Path | None) -> DeployPaths:
    return load_target(target).paths if target is not None else DeployPaths()
