"""Switches a board on and off: namespaces of its own, systemd as PID 1, and a cable from this machine to its sshd."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO

from hardware.emulated_board.root import USER
from support.waiting import until

HERE = Path(__file__).parent
BINFMT = Path("/proc/sys/fs/binfmt_misc")
EMULATOR = "/usr/libexec/qemu-binfmt/aarch64-binfmt-P"
# The head of an arm64 ELF file and the bits of it that count, as qemu-user-static registers it. Flags: P keeps argv[0],
# O and C give sudo's rights to what the emulator runs, F finds the emulator inside the root as well.
_ELF = r"\x7f\x45\x4c\x46\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
START_SECONDS = 900.0
SSH_SECONDS = 60.0
NAME = "emulated-board"
_NUMBERS = range(1, 64)
_LOCKS = Path("/run/lock")
_TOOLS = {
    "apt-get": "apt", "ip": "iproute2", "mmdebstrap": "mmdebstrap", "setpriv": "util-linux", "ssh": "openssh-client",
    "ssh-keygen": "openssh-client", "systemctl": "systemd", "systemd-sysusers": "systemd", "unshare": "util-linux",
}  # fmt: skip


def why_not() -> str:
    """Why no board can be emulated here; empty where one can."""
    if os.geteuid() != 0:
        return "an emulated board wants root, for namespaces, mounts and binfmt_misc"
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if not Path(EMULATOR).exists():
        missing += ["qemu-user-static", "binfmt-support"]
    if missing:
        return f"an emulated board wants Debian's packages {' '.join(missing)}"
    try:
        _register_emulator("narrowcast-try")
        _forget_emulator("narrowcast-try")
        _run("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--cgroup", "true")
    except (OSError, RuntimeError) as error:
        return f"an emulated board wants a kernel that lets it: {error}"
    return ""


class EmulatedBoard:
    """One board.

    Args:
        root: its disk, of :func:`hardware.emulated_board.root.make_root`; stays when it is switched off.
        folder: for keys, ssh's settings and what its console says.

    Attributes:
        key: the private key that user ``pi`` lets in.
        ssh_config: for ``ssh -F``: how to reach it as ``emulated-board``, with its host key known.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.key = folder / "id_ed25519"
        self.ssh_config = folder / "ssh_config"
        self.known_hosts = folder / "known_hosts"
        self.console = folder / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._claim = _claim_number()
        _register_emulator(self._name)
        folder.mkdir(parents=True, exist_ok=True)
        self._write_keys()

    @property
    def _name(self) -> str:
        """Of this machine's end of the cable, and of the board's control group."""
        return f"nc-board-{self._number}"

    @property
    def address(self) -> str:
        """The board's, on the cable."""
        return f"10.77.{self._number}.2"

    @property
    def host(self) -> str:
        """This machine's, on the cable: where a server listens for the board."""
        return f"10.77.{self._number}.1"

    @property
    def destination(self) -> str:
        """What a user gives to ``ssh``."""
        return f"{USER}@{self.address}"

    def path(self, text: str) -> Path:
        """A file of the running board, as its own processes see it: memory file systems too."""
        return Path(f"/proc/{self._init()}/root{text}")

    def boot(self) -> None:
        """Switches it on; returns when sshd answers."""
        assert self._process is None, "it is on already"
        name = self._name
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--net", "--uts",
                    "--ipc", "--pid", "--fork", "--kill-child=KILL",
                    str(HERE / "namespaces.sh"), "outside", str(self.root), str(HERE / "cpuinfo"), name,
                ],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        try:
            self._plug_in(name)
            until(self._answers, f"sshd of the emulated board answers; {self.console} has its console", START_SECONDS)
        except BaseException:
            self.off()
            raise

    def off(self) -> None:
        """Takes its power away: every process there ends at once, wherever it was."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # its systemd: the kernel ends all others before `unshare` hears of it
            os.kill(self._init() or self._process.pid, signal.SIGKILL)
        self._ended()

    def close(self) -> None:
        """Switches it off for good: nothing of it stays but its folder."""
        try:
            self.off()
        finally:
            _forget_emulator(self._name)
            self._claim.close()

    def cut_links(self) -> None:
        """Ends the processes of its sshd that serve connections, and with them every connection to it."""
        mine = Path(f"/proc/{self._init()}/ns/pid").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                words = (process / "cmdline").read_bytes().split(b"\0")
                if (process / "ns/pid").readlink() == mine and b"/usr/sbin/sshd" in words and b"-R" in words:
                    os.kill(int(process.name), signal.SIGKILL)

    def power_cycle(self) -> None:
        """A power cut, and power again."""
        self.off()
        self.boot()

    def reboot(self) -> None:
        """As ``sudo reboot`` on the board."""
        assert self._process is not None, "it is off"
        self.ssh("sudo systemctl reboot", check=False)
        self._ended()
        self.boot()

    def ssh(self, command: str, *, check: bool = True, input: str = "", seconds: float = 900.0) -> str:
        """Runs ``command`` there as user ``pi``; returns what it wrote to stdout."""
        words = ["ssh", "-F", str(self.ssh_config), NAME, command]
        done = subprocess.run(words, check=False, input=input, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            raise AssertionError(f"`{command}` on the board: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _init(self) -> int:
        """The number of the board's PID 1 on this machine; 0 where there is none yet."""
        assert self._process is not None, "it is off"
        with suppress(FileNotFoundError, ValueError):
            return int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())
        return 0

    def _ended(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:  # a reboot that hangs: what is on it ends with its first process
            with suppress(ProcessLookupError):
                os.kill(self._init() or self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=START_SECONDS)
        self._process = None
        with suppress(RuntimeError):  # goes by itself, but later than the next boot wants its name
            _run("ip", "link", "delete", self._name)
        until(self._forgotten, "the emulated board's control groups are empty", START_SECONDS)

    def _forgotten(self) -> bool:
        try:
            _run("unshare", "--mount", str(HERE / "namespaces.sh"), "gone", str(self.root), "", self._name)
        except RuntimeError:  # its last processes are still ending
            return False
        return True

    def _plug_in(self, name: str) -> None:
        """A cable from this machine to the board's ``eth0``."""
        assert self._process is not None
        process, here = self._process, Path("/proc/self/ns/net").readlink()
        there = Path(f"/proc/{process.pid}/ns/net")
        until(
            lambda: process.poll() is not None or there.readlink() != here, "the board has its network", START_SECONDS
        )
        board = ("nsenter", "--net", "--target", str(process.pid), "ip")
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        _run("ip", "address", "add", f"{self.host}/30", "dev", name)
        _run("ip", "link", "set", name, "up")
        _run(*board, "address", "add", f"{self.address}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*board, "link", "set", device, "up")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(
                f"the board ended while it booted:\n{self.console.read_text(errors='replace')[-3000:]}"
            )
        with suppress(OSError), socket.create_connection((self.address, 22), timeout=SSH_SECONDS) as link:
            return link.recv(4) == b"SSH-"
        return False

    def _write_keys(self) -> None:
        """A key of the user's, one of the board's, and who knows which."""
        host_key = self.root / "etc/ssh/ssh_host_ed25519_key"
        for key in (self.key, host_key):
            if not key.exists():
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key))
        authorized = self.root / f"home/{USER}/.ssh/authorized_keys"
        shutil.copy(self.key.with_suffix(".pub"), authorized)
        authorized.chmod(0o600)
        os.chown(authorized, 1000, 1000)
        self.known_hosts.write_text(f"{self.address} {host_key.with_suffix('.pub').read_text()}")
        self.ssh_config.write_text(
            f"Host {NAME}\n  HostName {self.address}\nHost {NAME} {self.address}\n  User {USER}\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n  BatchMode yes\n"
        )


def _claim_number() -> tuple[int, IO[str]]:
    """A number that no other board on this machine has, for as long as the file is open."""
    for number in _NUMBERS:
        lock = (_LOCKS / f"narrowcast-board-{number}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return number, lock
    raise RuntimeError(f"{len(_NUMBERS)} emulated boards run already")


def _register_emulator(name: str) -> None:
    """Tells the kernel what runs arm64 programs, as Debian's binfmt-support would on a machine that it booted.

    Each board by its own name, so that each can be forgotten by itself.
    """
    if not (BINFMT / "register").exists():
        _run("mount", "-t", "binfmt_misc", "none", str(BINFMT))
    if not (BINFMT / name).exists():
        with suppress(FileExistsError):
            (BINFMT / "register").write_text(f":{name}:M::{_ELF}:{_MASK}:{EMULATOR}:POCF")


def _forget_emulator(name: str) -> None:
    with suppress(OSError):  # it was never known
        (BINFMT / name).write_text("-1")


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
