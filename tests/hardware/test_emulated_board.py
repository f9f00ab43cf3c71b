"""A flash from nothing to daily life on an emulated arm64 board: Debian, systemd, sshd, wheels, ONNX Runtime, a real daemon.

The tests build on one another, in order: flashing takes minutes under emulation, so that each takes over what the one before
left. Nothing here depends on how long anything takes: waits poll, with bounds that only a hang reaches.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hardware.emulated_board.root import cache_folder
from support import bundles
from support.server import serving
from support.waiting import until

from narrowcast.devices.flash import Connection, FlashOptions, Observer, flash, logs, rollback, status
from narrowcast.devices.flash import flashing as flashing_module
from narrowcast.devices.flash.errors import (
    BoardError,
    BoardVerifyError,
    BusyError,
    DiskSpaceError,
    DowngradeError,
    HostKeyError,
    RolledBackError,
    WrongTargetError,
)
from narrowcast.transport.bundle import SecretKey

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "files"
GATE_SECONDS = 600.0
WAIT_SECONDS = 600.0
# Frames without a camera, for ever: raw ones, all black.
SOURCES = [{"name": "camera", "uri": "/dev/zero", "raw": "8x8", "fps": 2.0}]
NEVER = 10**6  # frames: a gate that wants so many does not open
PYTHON = "/opt/narrowcast/current/venv/bin/python"


class Shop:
    """A developer's machine, a tail server, and the board.

    Attributes:
        board: the emulated one.
        to: the server, as the board reaches it.
    """

    def __init__(self, board, folder: Path) -> None:
        self.board = board
        self.folder = folder
        self.models = folder / "models"
        self.models.mkdir()
        self.to = ""
        bundles.trusted_key().write(folder / "test.pub")
        self.bundle(1)

    def bundle(self, release: int) -> Path:
        """A signed one; the server has all of them."""
        path = self.models / f"tiny-{release}.ncb"
        return path if path.exists() else bundles.make(release=release).write(path)

    def flash(self, bundle: int | Path, observer: Observer | None = None, target: str = "arm64", **changes):
        """The report of a flash."""
        settings = {
            "connection": Connection(config=self.board.ssh_config), "to": self.to, "settings": {"sources": SOURCES},
            "extras": ["head"], "trusted": [bundles.KEY.public], "gate_seconds": GATE_SECONDS, **changes,
        }  # fmt: skip
        path = self.bundle(bundle) if isinstance(bundle, int) else bundle
        return flash(path, self.board.destination, target, options=FlashOptions(**settings), observer=observer)

    def on_disk(self, pattern: str) -> list[Path]:
        """What the flash has put on the board's disk, whether or not the board is on."""
        return list(self.board.root.glob(f"opt/narrowcast/{pattern}"))

    def current(self) -> int | None:
        """The release that `current` shows."""
        try:
            return int(self.board.path("/opt/narrowcast/current").readlink().name.split("-")[1])
        except OSError:
            return None

    def answering(self) -> int | None:
        """The release of the daemon that runs and is ready."""
        try:
            found = json.loads(self.board.path("/run/narrowcast/status.json").read_bytes())
        except (OSError, ValueError):
            return None
        alive = self.board.path(f"/proc/{found['pid']}").exists()
        return found["model"]["release"] if alive and found["ready"] and found["model"] else None

    def runs_what_it_shows(self) -> bool:
        """What `current` points to is what runs."""
        current = self.current()
        return current is not None and self.answering() == current

    def settle(self, release: int) -> None:
        """Until the daemon of this release runs, and it is the one that `current` shows."""
        until(lambda: self.answering() == self.current() == release, f"release {release} runs", WAIT_SECONDS)


@pytest.fixture(autouse=True)
def kept_wheels(keys_folder, monkeypatch):
    """The board's wheels are fetched once for all tests, and all runs."""
    monkeypatch.setenv("NARROWCAST_CACHE", str(cache_folder() / "narrowcast"))


@pytest.fixture(scope="module")
def shop(emulated_board, tmp_path_factory):
    """With a server that runs, on this machine's end of the board's cable."""
    shop = Shop(emulated_board, tmp_path_factory.mktemp("shop"))
    with serving(shop.models, shop.folder / "test.pub", "--insecure", listen=f"{emulated_board.host}:0") as server:
        shop.to = str(server.address)
        yield shop


def test_nothing_is_on_the_board_before_the_first_flash(shop):
    found = status(shop.board.destination, connection=Connection(config=shop.board.ssh_config))
    assert found.current is None
    assert found.facts["architecture"] == "aarch64"
    assert found.facts["systemd"]
    with pytest.raises(HostKeyError, match="SHA256:"):  # nobody has accepted it for this file
        unknown = [f"UserKnownHostsFile={shop.folder}/none"]
        status(shop.board.destination, connection=Connection(config=shop.board.ssh_config, options=unknown))


class Interfering(Observer):
    """Calls something when a step begins, or is done, once; keeps what it was told beside."""

    def __init__(self, step: str, do, state: str = "begin") -> None:
        self._line, self._do, self.done = (step, state), do, False
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def step(self, name: str, state: str, detail: str) -> None:
        if (name, state) == self._line and not self.done:
            self.done = True
            self._do()


def test_a_power_cut_on_a_bare_board_leaves_half_an_environment_and_nothing_that_runs(shop):
    def cut() -> None:
        until(lambda: bool(shop.on_disk("envs/*/lib/*/site-packages/*.dist-info")), "half an environment", WAIT_SECONDS)
        shop.board.off()
        assert not shop.on_disk("envs/*/.complete")
        assert not shop.on_disk("current")
        shop.board.boot()

    observer = Interfering("environment", cut)
    with pytest.raises(BoardError, match="goes on where it stopped"):
        shop.flash(1, observer)
    assert observer.done
    assert sum(path.stat().st_size for path in shop.on_disk("flash/files/*")) > 40_000_000, (
        "the wheels are brought along"
    )


def test_the_same_flash_once_more_makes_it_an_edge_device(shop):
    report = shop.flash(1)
    assert report.outcome == "committed"
    assert report.precision == "fp32"
    assert report.uploaded_bytes == 0, "all of it had arrived"
    assert [step.name for step in report.steps][-3:] == ["gate", "commit", "tidy"]
    shop.settle(1)
    assert shop.board.ssh("systemctl is-enabled narrowcast-edge").strip() == "enabled"
    pid = json.loads(shop.board.path("/run/narrowcast/status.json").read_bytes())["pid"]
    assert shop.board.ssh(f"stat -c %U /proc/{pid}").strip() == "narrowcast"
    found = status(shop.board.destination, connection=Connection(config=shop.board.ssh_config))
    assert found.current["number"] == 1
    assert found.service["active"]
    assert found.daemon["ledger"]["answered"] >= 3
    assert [key["id"] for key in found.trusted] == [bundles.KEY.public.id]


CHECK = """
import json, sys
from pathlib import Path
import numpy as np
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle, PublicKey
from narrowcast.transport.coder import Coder
from narrowcast.transport.tables import Tables

golden, symbols = Path("/tmp/golden"), None
symbols = np.frombuffer((golden / "symbols.bin").read_bytes(), np.uint8).reshape(3, 6, 11, 7)
kernels = set()
for lanes in (1, 2, 4):
    coder = Coder(Tables.from_bytes((golden / f"tables-{lanes}.bin").read_bytes()))
    kernels.add(coder.kernel)
    for level in range(3):
        assert coder.encode(symbols[level], level) == (golden / f"payload-{lanes}-{level}.bin").read_bytes()
bundle = Bundle.open("/opt/narrowcast/current/model.ncb", "device", trusted=[PublicKey.read("/etc/narrowcast/trusted.pub")])
session = HeadSession(bundle)
frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
decoded, (error,) = session.codec.decode_batch([session.encode(frame, 1).payload], [1])
print(json.dumps({"kernels": sorted(kernels), "error": error, "symbols": decoded[0].tolist()}))
"""


def test_the_coder_gives_the_golden_bytes_and_the_head_the_symbols_of_this_machine(shop):
    shutil.copytree(GOLDEN, shop.board.path("/tmp/golden"))
    shop.board.path("/tmp/check.py").write_text(CHECK)
    found = json.loads(shop.board.ssh(f"sudo {PYTHON} -I /tmp/check.py"))
    assert found["kernels"] == ["c"]
    assert found["error"] is None
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    here = (frame // 16).transpose(2, 0, 1).astype(int)
    assert np.abs(np.array(found["symbols"]) - here).max() <= 1
    assert (np.array(found["symbols"]) != here).mean() <= 0.001


def test_the_same_release_once_more_changes_nothing(shop):
    before = shop.board.path("/run/narrowcast/status.json").read_bytes()
    report = shop.flash(1)
    assert report.outcome == "unchanged"
    assert report.uploaded_bytes == 0
    after = shop.board.path("/run/narrowcast/status.json").read_bytes()
    assert json.loads(after)["pid"] == json.loads(before)["pid"], "the daemon was not restarted"


def test_another_kind_of_board_is_refused(shop):
    with pytest.raises(WrongTargetError, match="x86-64 is x86_64; the board is pi"):
        shop.flash(1, target="x86-64")


def test_the_board_itself_refuses_a_bundle_that_was_changed_on_the_way(shop, monkeypatch):
    """The developer's machine would refuse it too: here it is changed behind that."""
    good = flashing_module.head_part

    def changed(bundle):
        data = bytearray(good(bundle))
        at = data.index(b"head.onnx") + 100  # in the packed bytes behind the name
        data[at] ^= 1
        return bytes(data)

    monkeypatch.setattr(flashing_module, "head_part", changed)
    with pytest.raises(BoardVerifyError):
        shop.flash(2)
    shop.settle(1)


def test_a_key_that_the_board_does_not_know_is_refused(shop):
    other = SecretKey(b"another key, that no board trusts"[:32], "other")
    path = bundles.make(release=2).write(shop.folder / "other.ncb", key=other)
    with pytest.raises(BoardVerifyError, match="trust"):
        shop.flash(path, trusted=[other.public])
    shop.settle(1)


def test_a_full_disk_is_said_and_the_release_runs_on(shop):
    files = "/opt/narrowcast/flash/files"
    shop.board.ssh(f"sudo mount -t tmpfs -o size=4k,mode=700 tmpfs {files}")
    try:
        with pytest.raises(DiskSpaceError, match="full|free"):
            shop.flash(2)
    finally:
        shop.board.ssh(f"sudo umount {files}")
    shop.settle(1)


def test_two_at_once_are_kept_apart_and_losing_the_link_changes_nothing(shop):
    """While release 2 goes out, another flash is refused; then sshd is killed: the board goes on by itself."""

    def interfere() -> None:
        with pytest.raises(BusyError):
            shop.flash(3)
        shop.board.ssh("sudo pkill -f 'sshd: pi' || true", check=False)

    observer = Interfering("verify", interfere)
    report = shop.flash(2, observer)
    assert observer.done
    assert report.outcome == "committed"
    assert report.uploaded_bytes < 100_000, "the environment is there: its wheels are not sent again"
    shop.settle(2)


def test_a_killed_guardian_comes_back_and_a_power_cut_at_the_gate_leaves_the_old_release_running(shop):
    """Worker and guardian are killed as the switch begins: systemd starts them again. Then, while the new release runs and
    nobody has confirmed it, the power goes.
    """

    def cut() -> None:
        shop.settle(3)
        shop.board.power_cycle()

    observer = Interfering("gate", cut)
    with pytest.raises(RolledBackError, match="started again before the release was confirmed"):
        shop.flash(3, observer, drill="halt switch begin", gate_frames=NEVER)
    assert observer.done
    assert any("worker was killed; it goes on" in note for note in observer.notes)
    shop.settle(2)


def test_a_power_cut_right_behind_the_commit_leaves_the_new_release_running(shop):
    observer = Interfering("commit", shop.board.power_cycle, state="done")
    with suppress(BoardError):  # where it was so quick that the board had not yet tidied up
        shop.flash(3, observer)
    assert observer.done
    shop.settle(3)
    assert shop.flash(3).outcome == "unchanged"


def test_without_its_server_the_new_release_gives_way_to_the_old_one(shop):
    with pytest.raises(RolledBackError) as caught:
        shop.flash(4, to=f"{shop.board.host}:9", link_check=False, gate_seconds=30.0)
    assert caught.value.exit_code == 5
    shop.settle(3)
    assert f'to = "{shop.to}"' in shop.board.ssh("sudo cat /etc/narrowcast/edge.toml")


def test_an_older_release_is_no_accident(shop):
    with pytest.raises(DowngradeError):
        shop.flash(2)
    assert shop.runs_what_it_shows()


def test_a_release_is_rolled_back_by_command(shop):
    connection = Connection(config=shop.board.ssh_config)
    report = rollback(shop.board.destination, options=FlashOptions(connection=connection, gate_seconds=GATE_SECONDS))
    assert report.number == 2
    shop.settle(2)


def test_what_runs_runs_again_after_a_reboot(shop):
    shop.board.reboot()
    shop.settle(2)
    found = list(logs(shop.board.destination, connection=Connection(config=shop.board.ssh_config), lines=20))
    assert found, "the daemon's lines are there"
