"""``narrowcast flash --fleet`` over a real sshd: every board is a folder of this machine, with a stand-in environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import bundles, sshd, standin
from support.waiting import until

from narrowcast.cli import main

NAMES = ("dock-1", "dock-2", "gate-1")


class LocalFleet:
    """Three boards behind one sshd.

    Attributes:
        servers: where each board is told to send; ``nowhere`` never answers, and its gate fails.
        gate_seconds: that a gate may take.
    """

    def __init__(self, folder: Path, server: sshd.Sshd) -> None:
        self.folder = folder
        self.file = folder / "fleet.toml"
        self.state = folder / "fleet.state.json"
        self.environment = standin.make(folder / "standin")
        self.fingerprint = server.fingerprint
        self.servers = dict.fromkeys(NAMES, "tail:7433")
        self.gate_seconds = 30.0
        server.config.write_text(server.config.read_text().replace("Host board", f"Host {' '.join(NAMES)}"))
        self.config = server.config
        bundles.trusted_key().write(folder / "test.pub")

    def write(self) -> None:
        """The inventory."""
        boards = "".join(
            f'[[boards]]\nname = "{name}"\nssh = "{name}"\ngroups = ["{name.split("-")[0]}"]\nto = "{self.servers[name]}"\n'
            for name in NAMES
        )
        self.file.write_text(
            f'[defaults]\ntarget = "x86-64"\nprefix = "{self.folder}/boards/{{name}}"\nservices = "supervised"\n'
            f'source = "unix:/run/{{name}}.sock"\nenvironment = "{self.environment}"\nssh_config = "{self.config}"\n'
            f'accept_host_key = "{self.fingerprint}"\ngate_seconds = {self.gate_seconds}\n{boards}'
        )

    def flash(self, release: int, *options: str) -> int:
        """Exit code of a rollout of a release."""
        self.write()
        path = bundles.make(release=release).write(self.folder / "tiny.ncb")
        return main(self.words(str(path), *options))

    def words(self, what: str, *options: str) -> list[str]:
        """A command line."""
        words = ["flash", what, "--fleet", str(self.file), "--yes", "--json", "--no-link-check", *options]
        return [*words, "--trust", str(self.folder / "test.pub")]

    def running(self) -> dict[str, str]:
        """The release number that each board's daemon runs."""
        found = {}
        for name in NAMES:
            status = self.folder / "boards" / name / "run" / "status.json"
            found[name] = json.loads(status.read_text())["model"]["release"] if status.exists() else None
        return found


@pytest.fixture
def fleet(tmp_path):
    with sshd.running(tmp_path) as server:
        fleet = LocalFleet(tmp_path, server)
        try:
            yield fleet
        finally:
            from narrowcast.devices.flash.agent.services import Supervised
            from narrowcast.devices.flash.board import layout_of
            from narrowcast.devices.targets import DeployPaths

            for name in NAMES:
                Supervised(layout_of(f"{tmp_path}/boards/{name}", DeployPaths())).stop()


def report(capsys):
    return json.loads(capsys.readouterr().out)


def states(found):
    return {board["name"]: board["state"] for board in found["boards"]}


def test_a_fleet_is_flashed_asked_flashed_again_and_rolled_back(fleet, capsys):
    assert fleet.flash(1, "--dry-run") == 0
    assert set(states(report(capsys)).values()) == {"planned"}
    assert fleet.running() == dict.fromkeys(NAMES)
    assert not fleet.state.exists()

    assert fleet.flash(1, "--canary", "gate-1", "--wave", "1") == 0
    found = report(capsys)
    assert [(board["name"], board["wave"]) for board in found["boards"]] == [
        ("gate-1", "canary"), ("dock-1", "wave 1 of 2"), ("dock-2", "wave 2 of 2"),
    ]  # fmt: skip
    assert set(states(found).values()) == {"done"}
    assert fleet.running() == dict.fromkeys(NAMES, 1)

    fleet.servers["dock-2"] = "other:7433"
    assert fleet.flash(1) == 0
    assert states(report(capsys)) == {
        "dock-1": "verified",
        "dock-2": "done",
        "gate-1": "verified",
    }

    fleet.servers["dock-1"], fleet.gate_seconds = "nowhere:7433", 3.0
    assert fleet.flash(2, "--canary", "1") == 5
    fleet.gate_seconds = 30.0
    found = report(capsys)
    assert states(found) == {"dock-1": "rolled-back", "dock-2": "not-begun", "gate-1": "not-begun"}
    assert "0 of 3 frames were answered" in found["boards"][0]["detail"]
    until(lambda: fleet.running() == dict.fromkeys(NAMES, 1), "the old release runs again")

    fleet.servers["dock-1"] = "tail:7433"
    assert fleet.flash(2, "--group", "gate") == 0
    assert states(report(capsys)) == {"gate-1": "done"}

    assert main(fleet.words("status")) == 0
    found = report(capsys)["boards"]
    assert [board["name"] for board in found] == list(NAMES)
    assert [board["current"]["number"] for board in found] == [1, 1, 2]
    assert all(board["service"]["active"] for board in found)

    assert main(fleet.words("rollback", "--only", "gate-1", "--dry-run")) == 0
    assert states(report(capsys)) == {"gate-1": "planned"}
    assert fleet.running()["gate-1"] == 2, "a dry run goes nowhere"
    assert main(fleet.words("rollback", "--only", "gate-1")) == 0
    assert states(report(capsys)) == {"gate-1": "done"}
    until(lambda: fleet.running() == dict.fromkeys(NAMES, 1), "the release before runs again")

    # Run again, as after Ctrl-C or a board that failed: who went back stays there.
    assert main(fleet.words("rollback", "--only", "gate-1")) == 0
    found = report(capsys)
    assert states(found) == {"gate-1": "unchanged"}
    assert "had gone back from tiny-2-" in found["boards"][0]["detail"]
    assert fleet.running()["gate-1"] == 1
    assert main(fleet.words("rollback", "--only", "gate-1", "--afresh")) == 0
    assert states(report(capsys)) == {"gate-1": "done"}
    until(lambda: fleet.running()["gate-1"] == 2, "what it had left runs again")


def test_boards_that_cannot_be_reached_do_not_keep_the_others_from_it(fleet, capsys):
    fleet.write()
    text = fleet.config.read_text().replace(f"Host {' '.join(NAMES)}", f"Host {' '.join(NAMES[1:])}")
    fleet.config.write_text(text + "\nHost dock-1\n HostName 127.0.0.1\n Port 1\n")
    path = bundles.make(release=1).write(fleet.folder / "tiny.ncb")
    code = main(fleet.words(str(path), "--stop-after", "2", "--only", "dock-1", "--only", "dock-2"))
    found = report(capsys)
    assert code == 4
    assert found["outcome"] == "failed"
    assert states(found) == {"dock-1": "failed", "dock-2": "done"}
    assert "dock-1 cannot be reached" in found["boards"][0]["detail"]

    assert main(fleet.words("status", "--only", "dock-1", "--only", "dock-2")) == 4
    one, two = report(capsys)["boards"]
    assert "cannot be reached" in one["error"]
    assert two["current"]["number"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flash", "x.ncb"], "takes a board, or --fleet"),
        (["flash", "x.ncb", "pi@a", "--fleet", "f.toml"], "one of them"),
        (["flash", "status", "--fleet", "no.toml"], "no inventory no.toml"),
    ],
)
def test_what_cannot_be_asked_for_is_said(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err
