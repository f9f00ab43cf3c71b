"""``narrowcast profile`` on a board, over ssh, with its daemon out of the way meanwhile; the run record comes back."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from narrowcast.deploy.errors import ProfileOnBoardError, ReportError
from narrowcast.devices.flash import FlashOptions, Observer
from narrowcast.devices.flash.agent.layout import UNIT, Layout
from narrowcast.devices.flash.answers import There, checked
from narrowcast.devices.flash.board import connected, hello, layout_of, services_of
from narrowcast.devices.flash.edge import servers_of
from narrowcast.devices.flash.release import flashed_by
from narrowcast.devices.flash.session import Session
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.targets import load_target
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import parse_toml

_SSH_FAILED = 255  # as ssh itself ends; half a record counts as that, too
BEAT_SECONDS = 5.0
LOST_SECONDS = 60  # nothing was heard for so long: the link is gone, whatever TCP believes
END_SECONDS = 30.0  # for a profile that is interrupted, and the daemon that is started again behind it
# The daemon is started again however this ends; a board that loses its power meanwhile starts it by itself. A run that
# broke off has left a record of what there was.
_MEASURE = """
f=$(mktemp -d) || exit 1
paused=
end() {{ rm -rf "$f"; [ -z "$paused" ] || systemctl start {unit}; }}
trap end EXIT
trap 'exit 1' HUP INT TERM
if [ -d /run/systemd/system ] && systemctl is-active --quiet {unit}; then paused=yes; systemctl stop {unit}; fi
{watch} {command} --output "$f/run.json" 1>&2
code=$?
[ $code != {broken} ] || exit {broken}
if [ $code = 0 ] || [ -e "$f/run.json" ]; then cat "$f/run.json" || exit {broken}; fi
exit $code
"""
# Without a terminal sshd tells a command nothing of a link that has ended, and no write of its own does while it measures:
# the end of stdin is the end of the link, and so is silence. The profile is then interrupted, as by Ctrl-C, which has it
# take down its emulated links and give up its meters.
_WATCH = """
import contextlib, os, select, signal, subprocess, sys, threading
lost = []
signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started sshd may have had it ignored, and so would the profile
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
def watch():
    while (heard := select.select([0], [], [], float(sys.argv[1]))[0]) and os.read(0, 4096):
        pass
    lost.append("the link ended" if heard else f"nothing was heard over the link for {{sys.argv[1]}} s")
    child.send_signal(signal.SIGINT)
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
if lost:
    with contextlib.suppress(OSError):
        print(lost[0], file=sys.stderr, flush=True)
sys.exit({broken} if lost else code if code >= 0 else 128 - code)
"""


def daemon_words(layout: Layout, there: There, to: str) -> list[str]:
    """What the board's daemon is told, for ``narrowcast profile``: server, certificate, signatures, what runs the head.

    Args:
        layout: of the board.
        there: what runs on it.
        to: servers, where it has no settings that name one.

    Raises:
        ProfileOnBoardError: nothing says which server.
        ConfigError: its settings are damaged.
    """
    settings = parse_toml(there["edge"], "the board's edge.toml") if there["edge"] else {}
    servers = servers_of(there["edge"] or "") or [word.strip() for word in to.split(",") if word.strip()]
    if not servers:
        raise ProfileOnBoardError("neither the board's settings nor [deploy] to name a server")
    words = ["--to", servers[0]]  # a measurement is of one
    words += ["--allow-unsigned"] if settings.get("allow_unsigned") else ["--trust", str(layout.trusted)]
    tls = settings.get("tls") or ({"dir": f"{layout.config}/tls"} if there["tls"] and not settings else {})
    for name, option in (("dir", "--tls"), ("name", "--tls-name"), ("token_file", "--token-file")):
        if tls.get(name):  # files are named from where the settings lie
            words += [option, str(tls[name] if name == "name" else PurePosixPath(layout.config) / tls[name])]
    for name in ("backend", "precision", "threads"):
        if (value := (settings.get("runtime") or {}).get(name)) is not None:
            words += [f"--{name}", str(value)]
    return words


def profile_words(layout: Layout, there: There, to: str, options: Mapping[str, Any]) -> list[str]:
    """The words of ``narrowcast profile`` for a board.

    Args:
        layout: of the board.
        there: what runs on it, whose words come first: of two, the later counts.
        to: servers, where it has no settings that name one.
        options: the verb's, without their dashes; true for one without a value, a list for one that may be repeated.

    Raises:
        ProfileOnBoardError, ConfigError: as of :func:`daemon_words`.
    """
    python = f"{layout.current}/venv/bin/python"
    words = [
        python,
        "-I",
        "-m",
        "narrowcast",
        "profile",
        f"{layout.current}/model.ncb",
        *daemon_words(layout, there, to),
    ]
    return words + option_words(options)


def option_words(options: Mapping[str, Any]) -> list[str]:
    """``[deploy.profile] options`` as words of ``narrowcast profile``."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is not False:
                words += [option] if one is True else [option, str(one)]
    return words


def check_runs(bundle: Bundle, there: There, destination: str) -> None:
    """Whether a board runs this very bundle: what is measured there is noted as this one's.

    Raises:
        ProfileOnBoardError: it does not.
    """
    runs, manifest = there["current"] or {}, bundle.manifest
    wanted = {"model": manifest.name, "number": manifest.release, "fingerprint": manifest.fingerprint,
              "created": manifest.created}  # fmt: skip
    if any(runs.get(name) != value for name, value in wanted.items()):
        found = f"{runs['id']}{_made(runs['created']) if 'created' in runs else ''}" if runs else "nothing"
        raise ProfileOnBoardError(
            f"{destination} runs {found}, and {bundle.path.name} is {manifest.name}-{manifest.release}"
            f"{_made(manifest.created)}: do not skip flash"
        )


def _made(when: str) -> str:
    return f" (made {when})"


def profile_on_board(
    bundle: Bundle,
    destination: str,
    target: str,
    options: FlashOptions,
    *,
    to: str,
    settings: Mapping[str, Any],
    output: Path,
    observer: Observer,
) -> None:
    """Measures what runs on a board, and brings the run record here; of a run that broke off, what there was.

    Args:
        bundle: that it is to run.
        destination: the board.
        target: kind of board.
        options: that it was flashed with.
        to: the server, where the board's own settings name none.
        settings: further options of ``narrowcast profile``.
        output: where the record goes.
        observer: is told what the board says.

    Raises:
        ProfileOnBoardError: the board could not measure, runs another bundle, or nothing says with which server.
        BusyError: it is being flashed, or profiled already.
        FlashError: it cannot be reached.
    """
    layout = layout_of(options.prefix, load_target(target).paths)
    with connected(destination, options.connection, layout, observer) as (ssh, rights, session):
        manager = services_of(options.services, hello(session, layout), options.prefix)
        session.call("lock", by=flashed_by(), what="profiled")  # a flash would measure beside it, and start the daemon
        there = checked(session.call("status", services=manager), There, destination)
        check_runs(bundle, there, destination)
        words = profile_words(layout, there, to, settings)
        script = measure_script(rights.python, words)
        sudo = "sudo -n -- " if rights.root else ""
        record, code, last = _listen(ssh, session, f"{sudo}sh -c {shlex.quote(script)}", observer)
    whole = bool(record) and code != _SSH_FAILED
    if whole:
        with replacing(output) as out:
            out.write(record)
    if code:
        what = f" ({output} has what there was)" if whole else ""
        raise ProfileOnBoardError(
            f"{destination} could not measure: {last or f'exit code {code}'}{what}", 1 if code == _SSH_FAILED else code
        )


def measure_script(python: str, words: Sequence[str]) -> str:
    """What a board's shell runs: the daemon is stopped, the profile measures, its record is printed, the daemon runs again.

    Its stdin is the link: where that ends, or nothing comes for :data:`LOST_SECONDS`, the profile is interrupted.

    Args:
        python: the board's interpreter.
        words: of the profile.
    """
    watch = [python, "-IS", "-c", _WATCH.format(broken=_SSH_FAILED), str(LOST_SECONDS)]
    return _MEASURE.format(unit=UNIT, broken=_SSH_FAILED, watch=shlex.join(watch), command=shlex.join(words))


def make_report(record: Path, page: Path) -> None:
    """``narrowcast report`` of a run record.

    Raises:
        ReportError: it cannot be made.
    """
    words = [sys.executable, "-m", "narrowcast", "report", str(record), "--output", str(page), "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  (ourselves)
    if done.returncode:
        raise ReportError(done.stderr.strip().removeprefix("narrowcast: ") or f"no page of {record} could be made")


def _listen(ssh: Ssh, session: Session, remote: str, observer: Observer) -> tuple[bytes, int, str]:
    """What a command on the board prints, its exit code, its last line on stderr; each of these lines is passed on.

    However this ends, the command has ended as well, since its stdin has; it is given the time to tidy up.
    """
    with tempfile.TemporaryFile() as printed:  # no pipe: nobody reads it while the command talks
        process = subprocess.Popen(  # noqa: S603  (ssh, to a destination that is no option)
            ssh.command(remote), stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: we wait for the board
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        last = ""
        try:
            with _beating(session, process.stdin):
                for line in process.stderr:
                    last = line.decode("utf-8", "replace").rstrip()
                    observer.note(last)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=END_SECONDS)
            process.kill()
            code = process.wait()
        printed.seek(0)
        return printed.read(), code if code >= 0 else _SSH_FAILED, last


@contextmanager
def _beating(session: Session, command: IO[bytes]) -> Iterator[None]:
    """Tells the board that we are here: the session, which holds the lock, and the command."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            session.beat()
            with suppress(OSError):  # it has ended, and nobody listens
                command.write(b"\n")
                command.flush()

    thread = threading.Thread(target=beat, name="beats to the board", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
