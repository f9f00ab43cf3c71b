"""What a board checks of a release with the release's own environment, and what systemd is told there."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import bundles
from support.systemctl import Systemctl
from support.waiting import until

from narrowcast.devices.flash import checks
from narrowcast.devices.flash.agent import gate
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.services import Systemd
from narrowcast.devices.flash.agent.session import Session
from narrowcast.devices.flash.agent.wire import Wire
from narrowcast.transport.bundle import SecretKey


def checked(capsys, *words):
    """Exit code, answer and complaint of a check."""
    code = checks.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_a_board_verifies_what_it_got(tmp_path, capsys):
    keys, model = tmp_path / "trusted.pub", tmp_path / "m.ncb"
    bundles.trusted_key().write(keys)
    bundles.make(release=7).write(model)
    code, found, _ = checked(capsys, "verify", model, keys)
    assert (code, found["name"], found["release"], found["signed_by"]) == (
        0,
        "tiny",
        7,
        f"{bundles.trusted_key().id} test",
    )
    SecretKey.new("other").public.write(keys)
    code, _, complaint = checked(capsys, "verify", model, keys)
    assert code == 1
    assert complaint.startswith("BoardVerifyError: m.ncb is signed with the key")
    bundles.make().write(model, None)
    assert checked(capsys, "verify", model, keys)[2].startswith("BoardVerifyError: m.ncb is not signed")
    assert checked(capsys, "verify", model, "unsigned")[1]["signed_by"] == ""


@pytest.mark.parametrize(
    ("made", "passed", "words"),
    [
        (bundles.with_self_check(bundles.make()), True, "golden bytes equal at 2 levels"),
        (bundles.make(), True, "brings no reference"),
        (bundles.with_self_check(bundles.make(), moved=2), False, "symbols are not the bundle's"),
        (bundles.with_self_check(bundles.make(), payload=b"no payload"), False, "golden bytes of level 0"),
    ],
    ids=["right", "without", "other symbols", "other bytes"],
)
def test_a_board_tests_the_head_and_the_coder(tmp_path, capsys, made, passed, words):
    keys = tmp_path / "trusted.pub"
    bundles.trusted_key().write(keys)
    code, found, _ = checked(capsys, "choose", made.write(tmp_path / "m.ncb"), keys, '["onnxruntime"]', "auto")
    assert code == 0
    assert (found["head"]["precision"], found["selftest"]["passed"]) == ("fp32", passed)
    assert words in found["selftest"]["words"]


# ---------------------------------------------------------------- systemd


def test_systemd_is_told_in_the_right_order(tmp_path, monkeypatch):
    """By a stand-in for ``systemctl``; the real one runs in tests/hardware, on an emulated board."""
    systemctl = Systemctl(tmp_path / "systemctl", monkeypatch)
    systemd = Systemd(systemctl.units)
    boot = {"narrowcast-flash-boot.service": "[Unit]"}
    systemd.install(boot)
    systemd.install(boot)
    (tmp_path / "narrowcast-edge.service").write_text("[Service]")
    systemd.adopt(tmp_path)
    systemd.adopt(tmp_path)
    systemd.restart()
    calls = systemctl.calls
    assert calls.count("daemon-reload") == 2, "only where a unit changed"
    assert calls[-2:] == ["stop narrowcast-edge.service", "start --no-block narrowcast-edge.service"]
    for state, active, failed in (
        ("ActiveState=active\nMainPID=7\nNRestarts=2", True, False),
        ("ActiveState=activating\nSubState=auto-restart\nMainPID=0\nNRestarts=1", False, False),
        ("ActiveState=inactive\nMainPID=0\nJob=12", False, False),
        ("ActiveState=inactive\nMainPID=0", False, True),
        ("ActiveState=failed\nResult=exit-code\nMainPID=0", False, True),
    ):
        systemctl.shows(state)
        seen = systemd.state()
        assert (seen.active, seen.failed) == (active, failed), state
    assert seen.why == "failed (None, result exit-code)"
    systemctl.breaks()
    with pytest.raises(AgentError, match="systemctl daemon-reload: no way"):
        systemd.install({"x.service": "[Unit]"})


JOURNALCTL = """#!/bin/sh
echo a line
printf 'half a '
echo line
echo $$ >{folder}/pid
[ "$9" != --follow ] || exec sleep 60
printf 'no end'
"""


def test_the_daemons_last_words_are_not_its_managers():
    """After every end systemd says something as well, and last."""
    lines = [
        "2026-01-01T00:00:00+0000 pi narrowcast[7]: narrowcast: no such camera", "supervisor: the daemon ended with 1", "",
        "2026-01-01T00:00:00+0000 pi systemd[1]: narrowcast-edge.service: Failed with result 'exit-code'.",
    ]  # fmt: skip
    work = SimpleNamespace(services=SimpleNamespace(logs=lambda count: iter(lines[-count:])))
    assert gate._last_words(work).endswith("narrowcast: no such camera")


def test_lines_of_the_journal_end_with_who_listens(tmp_path, monkeypatch):
    """Nothing more is written to the log, so that no line finds out that nobody listens."""
    program = tmp_path / "journalctl"
    program.write_text(JOURNALCTL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert [line for line in Systemd().logs(5) if line is not None] == ["a line", "half a line", "no end"]
    (tmp_path / "pid").unlink()
    request = {"op": "logs", "services": "systemd", "lines": 5, "follow": True}
    here, there = os.pipe()
    wire = Wire(io.BytesIO(json.dumps(request).encode() + b"\n"), os.fdopen(there, "wb"))
    agent = threading.Thread(target=Session(wire, tmp_path / "agent.pyz").run, daemon=True)
    agent.start()
    with os.fdopen(here, "rb") as told:
        assert json.loads(told.readline()) == {"event": {"line": "a line"}}
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", "it waits for lines")
    until(lambda: not agent.is_alive(), "the agent has ended", 30)
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()
