"""Whether a board can run this, found out before anything is sent."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.answers import Facts, There
from narrowcast.devices.flash.board import Rights, kind_of, layout_of, services_of
from narrowcast.devices.flash.errors import (
    BoardError,
    DiskSpaceError,
    DowngradeError,
    PreflightError,
    ServerUnreachableError,
    WrongTargetError,
)
from narrowcast.devices.flash.options import USER, FlashOptions
from narrowcast.devices.flash.wheelhouse import Wheel
from narrowcast.devices.targets import PLAIN_PATH, Target
from narrowcast.text import human_bytes
from narrowcast.transport.bundle import Manifest

# A clock that is further off makes certificates and captured times wrong.
SKEW_SECONDS = 120.0
# Whom the daemon runs as under systemd, where nobody else was named.
USUAL_USER = "narrowcast"
# Where neither the daemon's user nor its unit (ProtectHome) gets to.
_PRIVATE = ("/home/", "/root/", "/run/user/")
# An interpreter that units can name as it is: systemd puts other words for $ and %, and ends a word at a blank.
_PLAIN = re.compile(r"[A-Za-z0-9/._@+,=-]+")


def choose_target(wanted: Target | None, facts: Facts, options: FlashOptions) -> Target:
    """The kind of board: what was asked for, if it can be that.

    Raises:
        WrongTargetError: the board is of another architecture, or is recognised as another kind.
    """
    seen = kind_of(facts)
    shown = f"{facts['model'] or facts['hostname']} ({facts['architecture']})"
    if wanted is None:
        if seen is None:
            raise WrongTargetError(f"no target describes {shown}; name a file of your own: --target my-board.toml")
        return seen
    if wanted.architecture != facts["architecture"]:
        raise WrongTargetError(f"{wanted.name} is {wanted.architecture}; the board is {shown}")
    # A generic target fits every board of its architecture; a particular one only what calls itself so.
    if (
        seen is not None
        and seen.recognise
        and wanted.recognise
        and seen.name != wanted.name
        and not options.allow_target
    ):
        raise WrongTargetError(f"the board is {shown}, {seen.name}, not {wanted.name}: --allow-target if that is meant")
    return wanted


def check_board(facts: Facts, target: Target, rights: Rights, options: FlashOptions) -> list[str]:
    """Python, clock, what the kernel shows of power; returns notes.

    Raises:
        PreflightError: it cannot be.
    """
    notes = []
    by_systemd = services_of(options.services, facts, options.prefix) == "systemd"
    if by_systemd and not _PLAIN.fullmatch(rights.python):
        raise PreflightError(f"{rights.python!r} cannot stand in a unit of systemd: name a link to it, --python PATH")
    if by_systemd and facts["executable"].startswith(_PRIVATE) and not options.environment:
        raise PreflightError(
            f"{facts['executable']} lies in a home folder, where the daemon's unit and user do not get to: bring it along "
            "outside (sudo env UV_PYTHON_INSTALL_DIR=/opt/python $(command -v uv) python install 3.10), then flash again"
        )
    if by_systemd:
        _check_paths(layout_of(options.prefix, target.paths))
    if not facts["venv"] and not options.environment:
        raise PreflightError("the board's Python has no module venv: apt install python3-venv")
    if rights.version not in target.python:
        notes.append(f"Python {rights.version} runs there; {target.title} is tested with {', '.join(target.python)}")
    skew = facts["clock"] - time.time()
    if abs(skew) > SKEW_SECONDS:
        notes.append(
            f"the board's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: set it (timedatectl set-ntp "
            "true); captured times are wrong until then"
        )
    if "tensorrt" in target.backends and not facts["modules"].get("tensorrt"):
        notes.append("TensorRT's bindings are not there: networks run on the CPU (sudo apt install python3-libnvinfer)")
    if target.power.sensor in ("ina3221", "pi5-pmic", "rapl") and target.power.sensor not in facts["power_sensors"]:
        notes.append(f"no power sensor {target.power.sensor} is seen there: {target.power.fix}")
    return notes


def _check_paths(layout: Layout) -> None:
    """Whether the daemon's unit gets to where things lie."""
    for name, path in layout.as_dict().items():
        instead = "name another folder in the target's [paths], or --services supervised"
        if not PLAIN_PATH.fullmatch(path):
            raise PreflightError(f"{name} is {path!r}, which cannot stand in a unit of systemd: {instead}")
        if f"{path}/".startswith((*_PRIVATE, "/tmp/", "/var/tmp/")):  # noqa: S108  (that is why)
            raise PreflightError(f"{name} is {path}, where the daemon's unit does not get to: {instead}")


def user_of(options: FlashOptions, there: There, manager: str) -> str:
    """Whom the daemon runs as: who was named, else who it is already; empty where that is who flashes.

    Raises:
        PreflightError: somebody was named, and there is nobody to become them.
    """
    if manager != "systemd":
        if options.user:
            raise PreflightError(
                f"--user {options.user} wants systemd; the supervisor runs the daemon as who flashes: log in as "
                f"{options.user}, and flash below a folder of theirs (--prefix DIR)"
            )
        return ""
    said = options.user if options.user is not None else (there["current"] or {}).get("user") or USUAL_USER
    if said and not USER.fullmatch(str(said)):
        raise BoardError(f"the board says that its daemon runs as {said!r}, which is no user: name one, --user NAME")
    return str(said or "root")  # by its name, so that the next flash finds it


def check_disk(facts: Facts, wheels: Sequence[Wheel], missing_bytes: int) -> None:
    """Whether an environment that is to be made fits: what is sent stays beside it until the release is confirmed.

    Raises:
        DiskSpaceError: it does not.
    """
    wanted = missing_bytes + sum(wheel.unpacked_bytes for wheel in wheels)
    if wheels and wanted > facts["free_bytes"]:
        raise DiskSpaceError(
            f"the release wants {human_bytes(wanted)} with its environment, and {human_bytes(facts['free_bytes'])} "
            "are free: free some space there"
        )


def check_release(manifest: Manifest, there: There, target: Target, options: FlashOptions) -> list[str]:
    """Whether the bundle is meant for such a board, and newer than what it runs; returns notes.

    Raises:
        WrongTargetError: it was compiled for others.
        DowngradeError: it is older.
    """
    if manifest.targets and target.name not in manifest.targets and not options.allow_target:
        raise WrongTargetError(
            f"{manifest.name} was compiled for {', '.join(manifest.targets)}, not for {target.name}: compile it for that "
            "too, or --allow-target"
        )
    current = there["current"] or {}
    highest = there["highest"].get(manifest.name, 0)
    # Behind a rollback: what runs may be this very bundle, which changes nothing. Another of its number the board refuses.
    runs = (current.get("model"), current.get("number")) == (manifest.name, manifest.release)
    if manifest.release < highest and not options.allow_downgrade and not runs:
        raise DowngradeError(
            f"{manifest.name} release {manifest.release} is older than {highest}, which the board ran: --allow-downgrade if "
            "that is meant"
        )
    model = current.get("model")
    return [f"the board runs another model, {model}"] if model and model != manifest.name else []


def check_servers(unreachable: dict[str, str], options: FlashOptions, servers: int) -> list[str]:
    """Whether the board reaches its servers, of which there are ``servers``; returns notes.

    Raises:
        ServerUnreachableError: it reaches none of them, and the gate would wait for answers in vain.
    """
    notes = [f"the board does not reach {address}: {why}" for address, why in unreachable.items()]
    if notes and options.gate == "frames" and options.link_check and len(unreachable) == servers:
        raise ServerUnreachableError("; ".join(notes) + "; start the server, or flash with --gate ready")
    return notes
