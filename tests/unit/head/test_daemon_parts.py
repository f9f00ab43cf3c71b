"""A daemon's small parts: what systemd is told, the lock on its folder, status.json."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from narrowcast.head.accounting import Ledger
from narrowcast.head.daemon.lock import StateLock
from narrowcast.head.daemon.notify import Notifier
from narrowcast.head.daemon.status import LedgerStatus, ModelStatus, Status, StatusFile, rfc3339, rss_bytes
from narrowcast.head.errors import StateError, StateLockedError


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket where systemd's would be: (its address for the environment, what came so far)."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@narrowcast-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address if request.param == "path" else "\0" + address[1:])
        receiver.settimeout(5)
        yield address, lambda: receiver.recv(4096).decode().split("\n")


def test_systemd_is_told(systemd):
    address, told = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_seconds == 30
    notifier.ready("two\nlines")
    assert told() == ["READY=1", "STATUS=two lines"]
    notifier.reloading()
    reloading, when = told()
    assert reloading == "RELOADING=1"
    assert when.removeprefix("MONOTONIC_USEC=").isdigit()
    for tell, line in ((notifier.watchdog, "WATCHDOG=1"), (notifier.stopping, "STOPPING=1")):
        tell()
        assert told() == [line]
    notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "30000000"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_systemd_or_a_watchdog_of_its_own_nothing_is_wrong(environment):
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    notifier.watchdog()


def test_one_folder_has_one_daemon_and_the_refusal_names_it(tmp_path):
    held = StateLock(tmp_path / "state")
    with pytest.raises(StateLockedError, match=rf"in use by process {os.getpid()}:"):
        StateLock(tmp_path / "state")
    held.close()
    StateLock(tmp_path / "state").close()


def test_a_killed_daemon_holds_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from narrowcast.head.daemon.lock import StateLock; "
        f"lock = StateLock(Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(StateLockedError, match=f"process {other.pid}:"):
        StateLock(tmp_path)
    other.kill()
    other.communicate()
    StateLock(tmp_path).close()


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used: Not a directory"):
        StateLock(tmp_path / "file" / "state")


def test_a_status_is_one_whole_file_of_json(tmp_path):
    ledger = Ledger()
    ledger.drop("late")
    ledger.end(ledger.capture(), "answered")
    account = LedgerStatus.of(ledger.account)
    assert account + LedgerStatus(captured=1, dropped={"late": 1}) == LedgerStatus(
        captured=3, answered=1, dropped={"late": 2}
    )
    status = Status(
        pid=os.getpid(), started_at=rfc3339(0), model=ModelStatus("tiny", 1, "00"), ledger=account, server=None,
        answer_age_s=None, frame_age_s=0.5, level=1, rss_bytes=rss_bytes(), ready=True,
    )  # fmt: skip
    file = StatusFile(tmp_path)
    file.write(status)
    read = json.loads((tmp_path / "status.json").read_text())
    assert read["started_at"] == "1970-01-01T00:00:00.000Z"
    assert read["ledger"] == {
        "captured": 2, "answered": 1, "local": 0, "spooled": 0, "dropped": {"late": 1}, "under_way": 0,
    }  # fmt: skip
    assert 1e6 < read["rss_bytes"] < 1e10
    assert (read["server"], read["ready"]) == (None, True)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    file.remove()
    assert not file.path.exists()


def test_a_status_that_cannot_be_written_holds_nothing_up(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    file = StatusFile(tmp_path / "file")
    for _ in range(2):
        file.write(
            Status(1, rfc3339(0), ModelStatus("tiny", 1, "00"), LedgerStatus(), None, None, None, None, None, False)
        )
    assert caplog.text.count("cannot be written") == 1
