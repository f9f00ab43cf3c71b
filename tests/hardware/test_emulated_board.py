"""A flash from nothing to daily life on an emulated arm64 board: Debian, systemd, sshd, wheels, ONNX Runtime, a real daemon.

The tests build on one another, in order: flashing takes minutes under emulation, so that each takes over what the one before
left. Nothing here depends on how long anything takes: waits poll, with bounds that only a hang reaches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hardware.emulated_board.root import GLIBC, cache_folder
from hardware.emulated_board.root import PYTHON as BOARD_PYTHON
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
    HostKeyError,
    RolledBackError,
    WheelhouseError,
)
from narrowcast.devices.flash.wheelhouse import BoardPython, bring_together
from narrowcast.transport.bundle import SecretKey

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "files"
GATE_SECONDS = 1500.0
WAIT_SECONDS = 1500.0
# Frames without a camera, for ever: raw ones, all black; few, since a daemon that idles under emulation costs as much as one
# that works elsewhere.
SOURCES = [{"name": "camera", "uri": "/dev/zero", "raw": "8x8", "fps": 0.25}]
FRAMES = 2
NEVER = 10**6  # frames: a gate that wants so many does not open
PYTHON = "/opt/narrowcast/current/venv/bin/python"


class PowerCutError(Exception):
    """The developer's machine lost its power with the board."""


class Interfering(Observer):
    """Calls something when a step begins, once; keeps what it was told beside."""

    def __init__(self, step: str, do: Callable[[], object]) -> None:
        self._line, self._do, self.done = (step, "begin"), do, False
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def step(self, name: str, state: str, detail: str) -> None:
        if (name, state) == self._line and not self.done:
            self.done = True
            self._do()


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

    def flash(self, bundle: int | Path, observer: Observer | None = None, **changes):
        """The report of a flash."""
        settings = {
            "connection": self.connection, "to": self.to, "settings": {"sources": SOURCES},
            "extras": ["head"], "trusted": [bundles.KEY.public], "gate_seconds": GATE_SECONDS,
            "gate_frames": FRAMES, **changes,
        }  # fmt: skip
        path = self.bundle(bundle) if isinstance(bundle, int) else bundle
        return flash(path, self.board.destination, "arm64", options=FlashOptions(**settings), observer=observer)

    def on_disk(self, pattern: str) -> list[Path]:
        """What the flash has put on the board's disk, whether or not the board is on."""
        return list(self.board.root.glob(f"opt/narrowcast/{pattern}"))

    def release_is_whole(self, number: int) -> bool:
        """Whether `current` shows this release, with all of its files, and an environment that is complete.

        Behind :meth:`settle`: a board that starts may go back while sshd answers already.
        """
        folder = self.board.path("/opt/narrowcast/current").readlink()
        place = self.board.path(f"/opt/narrowcast/{folder}")
        files = [place / name for name in ("model.ncb", "edge.toml", "release.json")]
        env = self.board.path(f"/opt/narrowcast/envs/{(place / 'venv').readlink().name}")
        return (
            folder.name.startswith(f"tiny-{number}-")
            and all(file.stat().st_size for file in files)
            and (env / ".complete").exists()
        )

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

    def user(self) -> str:
        """Whom the daemon runs as."""
        pid = json.loads(self.board.path("/run/narrowcast/status.json").read_bytes())["pid"]
        return self.board.ssh(f"stat -c %U /proc/{pid}").strip()

    def settle(self, release: int) -> None:
        """Until the daemon of this release runs, and it is the one that `current` shows."""
        until(lambda: self.answering() == self.current() == release, f"release {release} runs", WAIT_SECONDS)

    def roll_back(self, observer: Observer | None = None, drill: str = ""):
        """The report of a way back by command."""
        options = FlashOptions(connection=self.connection, gate_seconds=GATE_SECONDS, gate_frames=FRAMES, drill=drill)
        return rollback(self.board.destination, options=options, observer=observer)

    @property
    def connection(self) -> Connection:
        """To the board."""
        return Connection(config=self.board.ssh_config)

    def cut(self, step: str, act: Callable[..., object]) -> None:
        """Takes the power away from board and developer alike while the worker stands at the begin of a step.

        Args:
            step: its name.
            act: flashes or rolls back, with an observer and a drill.
        """

        def cut() -> None:
            self.board.power_cycle()
            raise PowerCutError

        observer = Interfering(step, cut)
        with pytest.raises(PowerCutError):
            act(observer=observer, drill=f"stop {step} begin")


@pytest.fixture(autouse=True)
def kept_wheels(keys_folder, monkeypatch):
    """The board's wheels are fetched once for all tests, and all runs."""
    monkeypatch.setenv("NARROWCAST_CACHE", str(cache_folder() / "narrowcast"))


@pytest.fixture(scope="module")
def shop(emulated_board, tmp_path_factory):
    """With a server that runs, on this machine's end of the board's cable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NARROWCAST_CACHE", str(cache_folder() / "narrowcast"))
        try:
            bring_together(BoardPython(BOARD_PYTHON, "aarch64", GLIBC), ["head"], Observer())
        except WheelhouseError as error:
            pytest.skip(f"the emulated board's wheels are not to be had: {error}")
    shop = Shop(emulated_board, tmp_path_factory.mktemp("shop"))
    with serving(shop.models, shop.folder / "test.pub", "--insecure", listen=f"{emulated_board.host}:0") as server:
        shop.to = str(server.address)
        yield shop


def test_nothing_is_on_the_board_before_the_first_flash(shop):
    found = status(shop.board.destination, connection=shop.connection)
    assert found.current is None
    assert found.facts["architecture"] == "aarch64"
    assert found.facts["systemd"]
    with pytest.raises(HostKeyError, match="SHA256:"):  # nobody has accepted it for this file
        unknown = [f"UserKnownHostsFile={shop.folder}/none"]
        status(shop.board.destination, connection=Connection(config=shop.board.ssh_config, options=unknown))


def test_a_power_cut_on_a_bare_board_leaves_half_an_environment_and_nothing_that_runs(shop):
    def cut() -> None:
        until(lambda: bool(shop.on_disk("envs/*/pyvenv.cfg")), "an environment is begun", WAIT_SECONDS)
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


@pytest.mark.parametrize("step", ["choose", "selftest"])
def test_a_power_cut_before_the_first_release_is_whole_leaves_nothing_that_runs(shop, step):
    shop.cut(step, lambda **how: shop.flash(1, **how))
    assert shop.on_disk("envs/*/.complete")
    assert shop.current() is None
    assert not shop.board.path("/etc/systemd/system/narrowcast-edge.service").exists()


def test_a_power_cut_behind_the_first_switch_leaves_the_new_release_running(shop):
    """Nothing ran before: it stays, and starts with the machine. Then it is taken away, for the tests that follow."""
    shop.cut("restart", lambda **how: shop.flash(1, **how))
    shop.settle(1)
    assert shop.release_is_whole(1)
    shop.board.ssh("sudo systemctl disable --now narrowcast-edge")
    shop.board.ssh("cd /opt/narrowcast && sudo rm -r current flash/state.json flash/jobs")


def test_the_same_flash_once_more_makes_it_an_edge_device(shop):
    report = shop.flash(1)
    assert report.outcome == "committed"
    assert report.precision == "fp32"
    assert report.uploaded_bytes == 0, "all of it had arrived"
    steps = [step.name for step in report.steps]
    assert steps[-3:] == ["gate", "commit", "tidy"]
    assert len(set(steps)) == len(steps) == 13, "what earlier flashes did is told as well"
    shop.settle(1)
    assert shop.board.ssh("systemctl is-enabled narrowcast-edge").strip() == "enabled"
    assert shop.user() == "narrowcast"
    found = status(shop.board.destination, connection=shop.connection)
    assert found.current["number"] == 1
    assert found.service["active"]
    assert found.daemon["ledger"]["answered"] >= FRAMES
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


def test_the_board_itself_refuses_a_bundle_that_was_changed_on_the_way(shop, monkeypatch):
    """The developer's machine would refuse it too: here it is changed behind that."""
    good = flashing_module.head_part

    def changed(bundle, **how):
        data = bytearray(good(bundle, **how))
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


@pytest.mark.parametrize("step", ["verify", "install", "switch"])
def test_a_power_cut_up_to_the_switch_leaves_the_old_release_running(shop, step):
    """Each flash goes on with the one that was cut before: what was done is not done again."""
    shop.cut(step, lambda **how: shop.flash(2, **how))
    shop.settle(1)
    assert shop.release_is_whole(1)


def test_a_power_cut_behind_the_commit_leaves_the_new_release_running(shop):
    shop.cut("tidy", lambda **how: shop.flash(2, **how))
    shop.settle(2)
    assert shop.release_is_whole(2)


@pytest.mark.parametrize("step", ["restart", "commit"])
def test_a_power_cut_between_switch_and_commit_goes_back(shop, step):
    """On the way to release 1, which takes a flash's own steps from the switch on: without a commit release 2 is back."""
    shop.cut(step, shop.roll_back)
    shop.settle(2)
    assert shop.release_is_whole(2)


def test_two_at_once_are_kept_apart_and_losing_the_link_changes_nothing(shop):
    """While release 3 goes out, another flash is refused; then sshd's processes are killed: the board goes on by itself."""

    def interfere() -> None:
        with pytest.raises(BusyError):
            shop.flash(4)
        shop.board.cut_links()

    observer = Interfering("verify", interfere)
    report = shop.flash(3, observer)
    assert observer.done
    assert any("broke" in note and "trying again" in note for note in observer.notes)
    assert report.outcome == "committed"
    assert report.uploaded_bytes < 100_000, "the environment is there: its wheels are not sent again"
    shop.settle(3)


def test_a_killed_guardian_comes_back_and_a_power_cut_at_the_gate_leaves_the_old_release_running(shop):
    """Worker and guardian are killed as the switch begins: systemd starts them again. Then, while the new release runs, as
    another user, and nobody has confirmed it, the power goes.
    """

    def cut() -> None:
        shop.settle(4)
        shop.board.power_cycle()

    observer = Interfering("gate", cut)
    with pytest.raises(RolledBackError, match="started again before the release was confirmed"):
        shop.flash(4, observer, drill="halt switch begin", gate_frames=NEVER, user="camera")
    assert observer.done
    assert any("worker was killed; it goes on" in note for note in observer.notes)
    shop.settle(3)
    assert shop.user() == "narrowcast"


def test_without_its_server_the_new_release_gives_way_to_the_old_one(shop):
    with pytest.raises(RolledBackError) as caught:
        shop.flash(4, to=f"{shop.board.host}:9", link_check=False, gate_seconds=30.0, user="camera")
    assert caught.value.exit_code == 5
    shop.settle(3)
    assert shop.user() == "narrowcast"
    assert f'to = "{shop.to}"' in shop.board.ssh("sudo cat /etc/narrowcast/edge.toml")


def test_a_release_is_rolled_back_by_command(shop):
    assert shop.roll_back().number == 2
    shop.settle(2)


def test_what_runs_runs_again_after_a_reboot(shop):
    shop.board.reboot()
    shop.settle(2)
    found = list(logs(shop.board.destination, connection=shop.connection, lines=20))
    assert found, "the daemon's lines are there"
