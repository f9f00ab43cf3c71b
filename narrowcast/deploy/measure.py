"""``narrowcast profile`` on a board, over ssh, with its daemon out of the way meanwhile; the run record comes back."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrowcast.deploy.errors import ProfileOnBoardError, ReportError
from narrowcast.devices.flash import FlashOptions, Observer
from narrowcast.devices.flash.agent.layout import UNIT, Layout
from narrowcast.devices.flash.board import connected, hello, layout_of
from narrowcast.devices.flash.release import flashed_by
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.targets import load_target
from narrowcast.transport.files import replacing

# The daemon is started again however this ends; a board that loses its power meanwhile starts it by itself.
_MEASURE = """
f=$(mktemp -d) || exit 1
paused=
end() {{ rm -rf "$f"; [ -z "$paused" ] || systemctl start {unit}; }}
trap end EXIT
trap 'exit 1' HUP INT TERM
if [ -d /run/systemd/system ] && systemctl is-active --quiet {unit}; then paused=yes; systemctl stop {unit}; fi
{command} --output "$f/run.json" 1>&2 || exit $?
cat "$f/run.json"
"""


def profile_words(layout: Layout, to: str, tls: bool, options: Mapping[str, Any]) -> list[str]:
    """The words of ``narrowcast profile`` for a board.

    Args:
        layout: of the board.
        to: the server.
        tls: the board has a certificate.
        options: the verb's, without their dashes; true for one without a value, a list for one that may be repeated.
    """
    words = [
        f"{layout.current}/venv/bin/python",
        "-I",
        "-m",
        "narrowcast",
        "profile",
        f"{layout.current}/model.ncb",
        "--to",
        to,
    ]
    words += ["--trust", str(layout.trusted)]
    if tls:
        words += ["--tls", f"{layout.config}/tls"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is not False:
                words += [option] if one is True else [option, str(one)]
    return words


def profile_on_board(
    destination: str,
    target: str,
    options: FlashOptions,
    *,
    to: str,
    settings: Mapping[str, Any],
    output: Path,
    observer: Observer,
) -> None:
    """Measures what runs on a board, and brings the run record here.

    Args:
        destination: the board.
        target: kind of board.
        options: that it was flashed with.
        to: the server that it sends to.
        settings: further options of ``narrowcast profile``.
        output: where the record goes.
        observer: is told what the board says.

    Raises:
        ProfileOnBoardError: the board could not measure.
        BusyError: it is being flashed, or profiled already.
        FlashError: it cannot be reached.
    """
    layout = layout_of(options.prefix, load_target(target).paths)
    with connected(destination, options.connection, layout, observer) as (ssh, rights, session):
        hello(session, layout)
        session.call("lock", by=flashed_by(), what="profiled")  # a flash would measure beside it, and start the daemon
        words = profile_words(layout, to, options.tls is not None, settings)
        script = _MEASURE.format(unit=UNIT, command=shlex.join(words))
        sudo = "sudo -n -- " if rights.root else ""
        record = _listen(ssh, f"{sudo}sh -c {shlex.quote(script)}", observer)
    with replacing(output) as out:
        out.write(record)


def make_report(record: Path, page: Path) -> None:
    """``narrowcast report`` of a run record.

    Raises:
        ReportError: it cannot be made.
    """
    words = [sys.executable, "-m", "narrowcast", "report", str(record), "--output", str(page), "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  (ourselves)
    if done.returncode:
        raise ReportError(done.stderr.strip().removeprefix("narrowcast: ") or f"no page of {record} could be made")


def _listen(ssh: Ssh, remote: str, observer: Observer) -> bytes:
    """What a command on the board prints; each line of its stderr is passed on."""
    with tempfile.TemporaryFile() as printed:  # no pipe: nobody reads it while the command talks
        process = subprocess.Popen(  # noqa: S603  (ssh, to a destination that is no option)
            ssh.command(remote), stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            last = line.decode("utf-8", "replace").rstrip()
            observer.note(last)
        if process.wait():
            code = process.returncode
            raise ProfileOnBoardError(f"{ssh.destination.text} could not measure: {last or f'exit code {code}'}")
        printed.seek(0)
        return printed.read()
