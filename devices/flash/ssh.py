"""The user's own ssh: its configuration, agent, jump hosts and known hosts; host keys are always checked."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from narrowcast.devices.flash.destination import Destination
from narrowcast.devices.flash.errors import BoardUnreachableError, FlashError, HostKeyError, LoginError
from narrowcast.devices.flash.options import Connection

FAILED = 255  # ssh's own exit code, where it is not the command's
COMMAND_SECONDS = 120.0
# So long a shared connection outlives its last command: it is closed at the end, but for who is killed before.
PERSIST_SECONDS = 60
_KEY = re.compile(r"^\d+ (?P<fingerprint>SHA256:\S+) .*\((?P<kind>[A-Z0-9-]+)\)$", re.MULTILINE)

Accept = Callable[[str, str, str], bool]


class Ssh:
    """Connections to one board. Use it as a context: at its end the shared connection is closed.

    Args:
        destination: the board.
        settings: how to get there.

    Attributes:
        control: the socket of the shared connection, while there is one.
    """

    def __init__(self, destination: Destination, settings: Connection) -> None:
        self.destination = destination
        self.settings = settings
        self._folder, self._passing = _private_folder()
        self.control = self._folder / secrets.token_hex(8)  # a short name: a socket's has about 100 characters

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self._run([*self._base(), "-O", "exit", *self.destination.words], seconds=10.0)
        self.control.unlink(missing_ok=True)
        if self._passing:
            shutil.rmtree(self._folder, ignore_errors=True)

    def open(self) -> None:
        """Makes the connection that the commands share: one login, and one question where ssh has to ask.

        Raises:
            FlashError: see :meth:`call`.
        """
        words = [*self._base(), "-M", "-N", "-f", f"-oControlPersist={PERSIST_SECONDS}", *self.destination.words]
        with tempfile.TemporaryFile() as errors:  # not a pipe: the process that stays would hold it open
            try:
                done = subprocess.run(  # noqa: S603
                    words, stdin=None if self.settings.interactive else subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=errors, timeout=None if self.settings.interactive else COMMAND_SECONDS, check=False,
                )  # fmt: skip
            except OSError as error:
                raise FlashError(f"{words[0]} cannot be run: {error.strerror}; install OpenSSH's client") from error
            except subprocess.TimeoutExpired as error:
                raise self._silent(COMMAND_SECONDS) from error
            errors.seek(0)
            if done.returncode != 0:
                raise self.explain(errors.read().decode("utf-8", "replace"))

    def command(self, remote: str) -> list[str]:
        """The words that run ``remote`` on the board."""
        return [*self._base(), "-T", *self.destination.words, remote]

    def shown(self, remote: str) -> str:
        """The same for people."""
        return f"{self.settings.ssh} {self.destination.text} {remote}"

    def call(self, remote: str, data: bytes = b"") -> bytes:
        """Runs a command on the board and gives what it prints.

        Raises:
            FlashError: it failed; BoardUnreachableError, LoginError, HostKeyError where ssh did.
        """
        done = self._run(self.command(remote), data)
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace")
            if done.returncode == FAILED:
                raise self.explain(said)
            raise FlashError(f"{self.destination.text}: {_last(said) or f'exit code {done.returncode}'}")
        return done.stdout

    def check_host(self, accept: Accept) -> None:
        """Returns when the board's key is one that is known, or was accepted now.

        Raises:
            HostKeyError: nobody accepted it, or it is another one than before.
            BoardUnreachableError: nobody answers.
        """
        with tempfile.TemporaryDirectory(prefix="nc-") as folder:
            known = Path(folder) / "known_hosts"
            # Known by the user's files? Ask without any login.
            asked = self._ask("StrictHostKeyChecking=yes")
            if "Host key verification failed" not in asked:
                if "Permission denied" in asked or not asked.strip():
                    return
                raise self.explain(asked)
            if "IDENTIFICATION HAS CHANGED" in asked:
                raise self.explain(asked)
            seen = self._ask(
                "StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={known}", "GlobalKnownHostsFile=/dev/null"
            )
            if not known.exists():
                raise self.explain(seen)
            kind, fingerprint = self._fingerprint(known)
            wanted = self.settings.accept_host_key
            if wanted and wanted != fingerprint:
                raise HostKeyError(
                    f"{self.destination.text} shows the {kind} key {fingerprint}, not {wanted}: it is another machine, or "
                    "somebody in between", fingerprint=fingerprint,
                )  # fmt: skip
            if not wanted and not accept(self.destination.text, kind, fingerprint):
                own = f"ssh-keygen -lf /etc/ssh/ssh_host_{kind.lower()}_key.pub"
                raise HostKeyError(
                    f"the host key of {self.destination.text} is not known: {kind} {fingerprint}; compare it with what the "
                    f"board itself says ({own}), then --accept-host-key {fingerprint}", fingerprint=fingerprint,
                )  # fmt: skip
            self._remember(known.read_text(encoding="utf-8"))

    def explain(self, said: str) -> FlashError:
        """The error behind what ssh wrote to stderr."""
        name, last = self.destination.text, _last(said)
        if "IDENTIFICATION HAS CHANGED" in said:
            return HostKeyError(
                f"{name} shows another host key than before: the board was set up anew, or somebody is in between; if you "
                f"know which, ssh-keygen -R {self.destination.host}, then flash again and compare the fingerprint"
            )
        if "Host key verification failed" in said:
            return HostKeyError(f"the host key of {name} is not accepted: {last}")
        if "Permission denied" in said or "Too many authentication failures" in said:
            how = "" if self.settings.interactive else " without a question (key or agent; see `ssh-add -l`)"
            return LoginError(f"{name} does not let us in: {last}; `ssh {name} true` must work{how}")
        return BoardUnreachableError(
            f"{name} cannot be reached: {last or 'ssh says nothing'}; `ssh {name} true` must work"
        )

    def _base(self) -> list[str]:
        settings = self.settings
        words = [settings.ssh]
        if settings.config is not None:
            words += ["-F", str(settings.config)]
        options = [
            "StrictHostKeyChecking=yes",  # of two, ssh takes the first: nobody's options switch it off
            *settings.options,
            f"BatchMode={'no' if settings.interactive else 'yes'}",
            f"ConnectTimeout={settings.connect_seconds}",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ControlMaster=no",
            f"ControlPath={self.control}",
            "RequestTTY=no",
            "RemoteCommand=none",
            "LogLevel=ERROR",
        ]
        return [*words, *(f"-o{option}" for option in options)]

    def _ask(self, *options: str) -> str:
        """What ssh says when it connects and shows nothing of who we are."""
        settings = self.settings
        own = ["-F", str(settings.config)] if settings.config is not None else []
        given = [f"-o{option}" for option in (*options, *settings.options)]
        words = [
            settings.ssh, *own, *given, "-oBatchMode=yes", "-oPreferredAuthentications=none", "-oControlMaster=no",
            "-oControlPath=none", "-oRemoteCommand=none", "-oHashKnownHosts=no",
            f"-oConnectTimeout={settings.connect_seconds}", "-T", *self.destination.words, "true",
        ]  # fmt: skip
        return self._run(words).stderr.decode("utf-8", "replace")

    def _fingerprint(self, known: Path) -> tuple[str, str]:
        done = self._run(["ssh-keygen", "-l", "-f", str(known)])
        match = _KEY.search(done.stdout.decode("utf-8", "replace"))
        if match is None:
            raise HostKeyError(f"the host key of {self.destination.text} cannot be read: {_last(done.stderr.decode())}")
        return match["kind"], match["fingerprint"]

    def _remember(self, lines: str) -> None:
        """Puts accepted keys where the user's ssh looks for them."""
        own = ["-F", str(self.settings.config)] if self.settings.config is not None else []
        given = [f"-o{option}" for option in self.settings.options]
        shown = self._run([self.settings.ssh, *own, *given, "-G", *self.destination.words]).stdout.decode()
        files = [line.split()[1:] for line in shown.splitlines() if line.lower().startswith("userknownhostsfile ")]
        path = Path(files[0][0] if files and files[0] else "~/.ssh/known_hosts").expanduser()
        if str(path) == os.devnull:
            raise HostKeyError(f"your ssh keeps no known hosts for {self.destination.text} (UserKnownHostsFile {path})")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            file.write(("\n" if end and file.read(1) != "\n" else "") + lines)

    def _run(
        self, words: list[str], data: bytes = b"", seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(  # noqa: S603  (the destination is the user's own, and no option)
                words, input=data, capture_output=True, timeout=seconds, check=False
            )
        except OSError as error:
            raise FlashError(f"{words[0]} cannot be run: {error.strerror}; install OpenSSH's client") from error
        except subprocess.TimeoutExpired as error:
            raise self._silent(seconds) from error

    def _silent(self, seconds: float) -> BoardUnreachableError:
        return BoardUnreachableError(f"{self.destination.text} did not answer within {seconds:.0f} s")


def _private_folder() -> tuple[Path, bool]:
    """A folder that nobody else gets into, for sockets; and whether it is this run's alone, since somebody made ours theirs.

    One for all runs: of those that are killed nothing stays behind.
    """
    place = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # noqa: S108
    folder = place / f"nc-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    seen = folder.lstat()
    if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077:
        return folder, False
    return Path(tempfile.mkdtemp(prefix="nc-", dir=place)), True


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Warning: Permanently")]
    return lines[-1][:300] if lines else ""
