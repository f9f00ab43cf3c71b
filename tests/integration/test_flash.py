"""Flashing this machine as a board, over a real sshd, with the real environment, daemon and tail server."""

from __future__ import annotations

import socket

import pytest
from support import bundles, sshd
from support.flashed import OTHER, Board, Watching
from support.server import serving
from support.waiting import until

from narrowcast.devices.flash import logs, rollback, status
from narrowcast.devices.flash.errors import (
    BoardVerifyError,
    DowngradeError,
    EdgeConfigError,
    FlashError,
    RolledBackError,
    ServerUnreachableError,
)
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import MissingPartError


@pytest.fixture(scope="module")
def tail(tmp_path_factory):
    """A tail server with two releases, each with the same codec."""
    folder = tmp_path_factory.mktemp("tail")
    bundles.make(release=1).write(folder / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    with serving(folder, folder / "test.pub") as server:
        yield str(server.address)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    """A running sshd."""
    with sshd.running(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def board(tmp_path, ssh, tail):
    """A bare board with five frames."""
    made = Board(tmp_path / "flashed", ssh, tail)
    try:
        yield made
    finally:
        made.close()


def test_from_zero_to_an_update_and_back(board):
    """The whole life of a board: nothing, a release, the same again, another one, what is refused, and back."""
    observer = Watching()
    first = board.flash(1, observer=observer)
    assert (first.outcome, first.number, first.previous) == ("committed", 1, None)
    assert first.precision == "fp32"
    assert observer.plans[0].enrols
    assert [name for name, state in observer.steps if state == "done"] == [
        "connect", "preflight", "upload", "environment", "verify", "choose", "selftest", "install", "switch", "restart",
        "gate", "commit", "tidy",
    ]  # fmt: skip
    assert (
        "tail.onnx" not in (board.layout.current / "model.ncb").read_bytes().decode("latin-1").split("manifest.sig")[1]
    )
    assert (board.layout.current / "edge.toml").stat().st_mode & 0o777 == 0o600

    again = board.flash(1)
    assert (again.outcome, again.uploaded_bytes) == ("unchanged", 0)

    second = board.flash(2, to="", settings={})  # what is left out stays as it is there
    assert (second.outcome, second.previous) == ("committed", first.release)
    found = status("board", **board.place)
    assert found.current["id"] == second.release
    assert found.daemon["model"]["release"] == 2
    assert found.daemon["ledger"]["answered"] >= 3
    assert found.service["active"]
    assert found.pending is None
    assert [key["id"] for key in found.trusted] == [bundles.trusted_key().id]
    lines = list(logs("board", **board.place, lines=50))
    assert any("ready in" in line for line in lines)

    with pytest.raises(DowngradeError, match="release 1 is older than 2"):
        board.flash(1)
    with pytest.raises(BoardVerifyError, match=f"signed with the key {OTHER.public.id}"):
        board.flash(3, key=OTHER)
    with pytest.raises(ServerUnreachableError, match="does not reach 127.0.0.1:1"):
        board.flash(3, to="127.0.0.1:1")
    now = status("board", **board.place)
    assert now.current["id"] == second.release
    assert now.service["pid"] == found.service["pid"], "the daemon was not disturbed"

    with socket.socket() as deaf:  # takes connections, and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(RolledBackError, match=r"after 4 s .* its last line") as caught:
            board.flash(3, to=f"127.0.0.1:{deaf.getsockname()[1]}", gate_seconds=4.0)
    assert caught.value.exit_code == 5
    assert (caught.value.report.outcome, caught.value.report.release) == ("rolled-back", second.release)
    until(lambda: board.answering() == 2, "release 2 runs again")

    back = rollback("board", options=board.options)
    assert (back.outcome, back.release, back.previous) == ("committed", first.release, second.release)
    until(lambda: board.answering() == 1, "release 1 runs again")
    assert board.flash(1).outcome == "unchanged"
    with pytest.raises(DowngradeError, match="release 1 is older than 2, which this board ran"):
        board.flash(1, precision="fp32")


def test_the_uncut_network_comes_along_only_where_it_is_wanted(board):
    """With it the board answers by itself; without it such settings are refused on the board, and what ran runs on."""
    alone = {
        "settings": {
            **board.options.settings,
            "sources": [{**board.options.settings["sources"][0], "offload": "local"}],
        }
    }
    with pytest.raises(MissingPartError, match=r"tiny-1.ncb has no uncut network .* \[export\] whole = true"):
        board.flash(1, whole=True)
    lean = board.flash(1, uncut=True)
    assert not Bundle.open(board.layout.current / "model.ncb", trusted=[bundles.trusted_key()]).has("whole")
    with pytest.raises(EdgeConfigError, match="flash with --gate ready"):
        board.flash(1, uncut=True, whole=True, **alone)
    alone["gate"] = "ready"
    with pytest.raises(FlashError, match="whole"):
        board.flash(1, uncut=True, **alone)
    assert status("board", **board.place).current["id"] == lean.release
    full = board.flash(1, uncut=True, whole=True, **alone)
    assert (full.outcome, full.previous) == ("committed", lean.release)
    until(lambda: status("board", **board.place).daemon["ledger"]["local"] >= 3, "its own answers")
    assert status("board", **board.place).daemon["ledger"]["answered"] == 0


def test_what_was_tampered_with_on_its_way_is_refused_by_the_board(board, monkeypatch):
    from narrowcast.devices.flash import flashing

    honest = flashing.head_part

    def tampered(bundle, **how):
        data = bytearray(honest(bundle, **how))
        place = data.index(b"tables", data.index(b"manifest.sig")) + 40
        data[place] ^= 1
        return bytes(data)

    monkeypatch.setattr(flashing, "head_part", tampered)
    with pytest.raises(BoardVerifyError):
        board.flash(1)
    assert board.layout.running() is None
    assert not board.layout.trusted.exists(), "no key is trusted for a bundle that does not hold"
