"""Into the folder of a tail server: whole or not at all, and never over another bundle of the same name."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from narrowcast.deploy.errors import PublishError
from narrowcast.devices.flash import Connection, Observer
from narrowcast.devices.flash.agent.files import sha256_of
from narrowcast.devices.flash.destination import Destination
from narrowcast.devices.flash.ssh import FAILED, Ssh
from narrowcast.transport.files import at_home, replacing

# The file arrives under a name that the server does not read, and takes its own once its hash is right and it is on disk.
_PUT = """
set -e
cd {folder}
trap 'rm -f {partial}' EXIT
cat >{partial}
echo '{digest}  {partial}' | sha256sum --check --quiet
sync {partial}
mv -f {partial} {name}
"""
_LOOK = "cd {folder} && if [ -e {name} ]; then sha256sum {name}; else echo absent; fi"

_HOME = re.compile(r"~[A-Za-z0-9._-]*(?:/|$)")


class Place(Protocol):
    """A server's folder, wherever it is."""

    def digest(self, name: str) -> str | None:
        """The SHA-256 of a file in it; None where there is none of that name."""

    def put(self, source: Path, name: str) -> None:
        """Copies a file into it, atomically."""


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise PublishError(
                f"no folder {folder} to publish in: make it, or name the one of `narrowcast serve --bundles`"
            )

    def digest(self, name: str) -> str | None:
        """See :class:`Place`."""
        try:
            return sha256_of(self._folder / name)
        except FileNotFoundError:
            return None

    def put(self, source: Path, name: str) -> None:
        """See :class:`Place`."""
        with source.open("rb") as file, replacing(self._folder / name) as out:
            shutil.copyfileobj(file, out)


class RemotePlace:
    """A folder of another machine, by ssh."""

    def __init__(self, ssh: Ssh, folder: str) -> None:
        self._ssh = ssh
        self._folder = folder

    def digest(self, name: str) -> str | None:
        """See :class:`Place`."""
        said = self._ssh.call(_LOOK.format(folder=_in_shell(self._folder), name=shlex.quote(name))).decode().split()
        return None if said[:1] == ["absent"] else said[0]

    def put(self, source: Path, name: str) -> None:
        """See :class:`Place`."""
        digest = sha256_of(source)
        partial = shlex.quote(f".{name}.{digest[:12]}.partial")
        words = {"folder": _in_shell(self._folder), "name": shlex.quote(name), "partial": partial, "digest": digest}
        with source.open("rb") as file:
            done = subprocess.run(  # noqa: S603  (ssh, to a destination that is no option)
                self._ssh.command(_PUT.format(**words)), stdin=file, capture_output=True, text=True, check=False
            )
        if done.returncode == FAILED:
            raise self._ssh.explain(done.stderr)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise PublishError(f"{name} did not get into {self._ssh.destination.text}:{self._folder}: {said[-1][:300]}")


def _in_shell(folder: str) -> str:
    """A folder as a word of the server's shell, which finds homes (``~``, ``~ops``) where nothing quotes them."""
    home = _HOME.match(folder)
    start, rest = (home[0], folder[home.end() :]) if home else ("", folder)
    return start + (shlex.quote(rest) if rest else "")


@contextmanager
def open_place(text: str, folder: Path, connection: Connection, observer: Observer) -> Iterator[Place]:
    """The place that ``publish`` names: ``USER@HOST:DIR``, or a folder, relative to ``folder``.

    Raises:
        PublishError: no such folder.
        FlashError: the machine cannot be reached.
    """
    host, colon, rest = text.partition(":")
    if not colon or "/" in host:
        yield LocalPlace(folder / at_home(text))
        return
    if not rest:
        raise PublishError(f"publish is {text!r}; a folder follows the colon: {host}:/srv/narrowcast/models")
    with Ssh(Destination.parse(host), connection) as ssh:
        ssh.check_host(observer.accept_host)
        ssh.open()
        yield RemotePlace(ssh, rest)


def publish(place: Place, bundle: Path, name: str, *, replace: bool = False) -> bool:
    """Puts a bundle into a place.

    Args:
        place: where.
        bundle: the file.
        name: the one it gets there.
        replace: over another bundle of that name.

    Returns:
        whether it had to be copied; it is there either way.

    Raises:
        PublishError: another bundle has that name.
    """
    there = place.digest(name)
    if there == sha256_of(bundle):
        return False
    if there is not None and not replace:
        raise PublishError(
            f"{name} is published with other content: boards may still need it. Raise `release` in the recipe, or --replace"
        )
    place.put(bundle, name)
    return True
