"""A board that was connected to: its Python, its rights, its paths and what it says of itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.answers import Facts, checked
from narrowcast.devices.flash.destination import Destination
from narrowcast.devices.flash.errors import HostKeyError, PreflightError, SudoError
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import Connection
from narrowcast.devices.flash.packing import OLDEST
from narrowcast.devices.flash.session import Session
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.targets import DeployPaths, Target, recognise
from narrowcast.transport.errors import ConfigError

# In the order of preference: what people put there, then the system's newest.
_CANDIDATES = (
    "python3 python3.13 python3.12 python3.11 python3.10 /opt/python/*/bin/python3 $HOME/.local/bin/python3.* "
    "$HOME/.local/share/uv/python/*/bin/python3"
)

# Printed one fact a line; plain enough for every sh of the last thirty years.
_LOOK = r"""
echo uid "$(id -u)"
sudo -n true >/dev/null 2>&1 && echo sudo yes
d={folder}
while [ -n "$d" ] && [ ! -e "$d" ]; do n=${{d%/*}}; [ "$n" = "$d" ] && break; d=$n; done
[ -w "${{d:-/}}" ] && echo writable yes
for p in {candidates}; do
  q=$(command -v "$p" 2>/dev/null) || continue
  "$q" -c 'import sys
v = sys.version_info[:2]
print("python %d.%d %s" % (v + (sys.executable,)))
sys.exit(v < {oldest})' 2>/dev/null && break
done
true
"""


@dataclass(frozen=True)
class Rights:
    """What the first look over ssh found: the interpreter, and whether ``sudo`` is wanted."""

    python: str
    version: str
    root: bool


def layout_of(prefix: str, paths: DeployPaths) -> Layout:
    """Where things lie: a target's paths, or everything below one folder.

    Raises:
        ConfigError: the folder is not one from the board's root.
    """
    if prefix and (not prefix.startswith("/") or not prefix.strip("/")):
        raise ConfigError(f"--prefix {prefix}: name the board's folder from its root, such as /home/me/narrowcast")
    if not prefix:
        return Layout(program=paths.program, config=paths.config, state=paths.state, cache=paths.cache, run=paths.run)
    prefix = prefix.rstrip("/")
    return Layout(
        program=prefix, config=f"{prefix}/etc", state=f"{prefix}/state", cache=f"{prefix}/cache", run=f"{prefix}/run"
    )


def look(ssh: Ssh, settings: Connection, layout: Layout) -> Rights:
    """The first look at a board, as who logs in there.

    Raises:
        PreflightError: it has no Python that is new enough.
        SudoError: its paths want root, and sudo asks for a password.
    """
    candidates = shlex.quote(settings.python) if settings.python else _CANDIDATES
    script = _LOOK.format(folder=shlex.quote(layout.program), candidates=candidates, oldest=OLDEST)
    said = ssh.call(f"exec sh -c {shlex.quote(script)}").decode("utf-8", "replace")
    facts = [line.split(maxsplit=2) for line in said.splitlines()]
    pythons = [(words[1], words[2]) for words in facts if words[:1] == ["python"] and len(words) == 3]
    usable = [found for found in pythons if tuple(map(int, found[0].split("."))) >= OLDEST]
    name = ssh.destination.text
    if not usable:
        seen = ", ".join(f"{path} ({version})" for version, path in pythons) or "none"
        raise PreflightError(
            f"{name} has no Python {OLDEST[0]}.{OLDEST[1]} or later (found: {seen}): apt install python3, or bring one "
            "along (uv python install 3.10), or name it: --python PATH"
        )
    version, path = usable[0]
    uid = next((words[1] for words in facts if words[:1] == ["uid"] and len(words) > 1), "")
    wants_root = uid != "0" and ["writable", "yes"] not in facts
    root = wants_root if settings.sudo is None else settings.sudo and uid != "0"
    if root and ["sudo", "yes"] not in facts:
        raise SudoError(
            f"{layout.program} on {name} wants root, and sudo asks for a password: allow it for this user (a line USER "
            "ALL=(ALL) NOPASSWD: ALL in /etc/sudoers.d/), log in as root, or flash below a folder of your own: --prefix DIR"
        )
    return Rights(path, version, root)


@contextmanager
def connected(
    destination: str, settings: Connection, layout: Layout, observer: Observer
) -> Iterator[tuple[Ssh, Rights, Session]]:
    """A session with a board: host key checked, logged in, Python and rights found, layout told."""
    with Ssh(Destination.parse(destination), settings) as ssh:
        try:
            ssh.open()
        except HostKeyError:  # before any login: a person says whether it is right, or nobody does
            ssh.check_host(observer.accept_host)
            ssh.open()
        rights = look(ssh, settings, layout)
        with Session(ssh, rights.python, root=rights.root) as session:
            yield ssh, rights, session


def hello(session: Session, layout: Layout) -> Facts:
    """What the board says of itself."""
    return checked(session.call("hello", layout=layout.as_dict()), Facts, session.board)


def services_of(wanted: str, facts: Facts, prefix: str) -> str:
    """Who keeps the daemon running there: systemd where it is PID 1 and we are root, unless told otherwise."""
    if wanted != "auto":
        return wanted
    return "systemd" if facts["systemd"] and facts["root"] and not prefix else "supervised"


def kind_of(facts: Facts) -> Target | None:
    """The target that the board is recognised as."""
    return recognise(facts["model"], facts["architecture"], facts["compatible"])
