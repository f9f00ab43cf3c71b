"""The board's root filesystem: Debian's own arm64 packages, unpacked, and what their scripts would have set up.

No arm64 code runs while it is made, so that it takes seconds. Made once and kept, by the hash of this file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

USER = "pi"
RELEASE, PYTHON, GLIBC = "bookworm", "3.11", "2.36"
CPUINFO = "usr/share/emulated-cpuinfo"
_PACKAGES = (
    "base-files,base-passwd,bash,coreutils,dash,dbus,diffutils,findutils,grep,gzip,hostname,iproute2,libc-bin,libgomp1,"
    "libpam-modules,libpam-runtime,libpam-systemd,libstdc++6,login,mawk,mount,ncurses-bin,openssh-server,passwd,procps,"
    "python3,python3-venv,sed,sudo,systemd,systemd-sysv,tar,util-linux"
)
_USERS = {  # name: (number, group's number, home, shell, what /etc/shadow says)
    "sshd": (101, 65534, "/run/sshd", "/usr/sbin/nologin", "!"),
    "messagebus": (105, 105, "/nonexistent", "/usr/sbin/nologin", "!"),
    USER: (1000, 1000, f"/home/{USER}", "/bin/bash", "*"),
}
# Units that want hardware, a network manager or a boot loader of the board's own.
_MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dev-hugepages.mount", "dpkg-db-backup.timer", "e2scrub_reap.service",
    "getty-static.service", "getty@tty1.service", "ssh.socket", "systemd-binfmt.service", "systemd-firstboot.service",
    "systemd-machine-id-commit.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-sysctl.service",
    "systemd-sysusers.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-setup.service",
    "systemd-udev-trigger.service", "systemd-udevd.service",
)  # fmt: skip
_ENVIRONMENT = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}


def cache_folder() -> Path:
    """Where roots and wheels are kept between runs."""
    base = os.environ.get("NARROWCAST_TEST_CACHE") or Path.home() / ".cache" / "narrowcast-tests"
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_root() -> Path:
    """A root that nobody has booted, made the first time; copy it, do not boot it."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    root = cache_folder() / f"board-{RELEASE}-{digest}"
    with (cache_folder() / ".board.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two sessions at once make one
        if not root.is_dir():
            for old in cache_folder().glob("board-*-*"):
                shutil.rmtree(old)
            unfinished = root.with_name(f".{root.name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            make_root(unfinished)
            unfinished.rename(root)
    return root


def copy_root(to: Path) -> None:
    """A root of one's own, to boot."""
    _run("cp", "--archive", "--reflink=auto", str(cached_root()), str(to))


def make_root(root: Path) -> None:
    """Writes a root; raises ``RuntimeError`` with the words of a tool that fails."""
    mirror = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    site = next(one for one in mirror if "security" not in one)
    _run(
        "mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", "--mode=root",
        '--aptopt=APT::Sandbox::User "root"', '--aptopt=APT::Install-Recommends "false"',
        f"--include={_PACKAGES}", RELEASE, str(root), site,
    )  # fmt: skip
    _users(root)
    _logins(root)
    _units(root)


def _users(root: Path) -> None:
    etc = root / "etc"
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", etc / name)
    _append(etc / "passwd", (f"{n}:x:{u}:{g}::{home}:{shell}" for n, (u, g, home, shell, _) in _USERS.items()))
    _append(etc / "group", (f"{n}:x:{g}:" for n, (_, g, _, _, _) in _USERS.items() if g != 65534))
    (etc / "passwd").write_text((etc / "passwd").read_text().replace("root::", "root:x:", 1))
    shadow = ["root:*:19000:0:99999:7:::\n", *(f"{n}:{u[4]}:19000:0:99999:7:::\n" for n, u in _USERS.items())]
    (etc / "shadow").write_text("".join(shadow))
    (etc / "shadow").chmod(0o640)
    (etc / "gshadow").touch()
    _run("systemd-sysusers", f"--root={root}")
    home = root / "home" / USER
    for folder, mode in ((home, 0o755), (home / ".ssh", 0o700)):
        folder.mkdir(mode=mode, parents=True)
        os.chown(folder, 1000, 1000)


def _logins(root: Path) -> None:
    """sudo without a password, as Raspberry Pi OS has it; sshd with keys alone."""
    etc = root / "etc"
    sudoers = etc / "sudoers.d" / USER
    sudoers.write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    for service in ("other", "sudo", "sshd", "login", "systemd-user"):
        kinds = ("auth", "account", "password", "session")
        (etc / "pam.d" / service).write_text("".join(f"{kind} required pam_permit.so\n" for kind in kinds))
    (etc / "ssh/sshd_config").write_text(
        "UsePAM yes\nPasswordAuthentication no\nMaxStartups 100\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
    )


def _units(root: Path) -> None:
    etc = root / "etc"
    (etc / "hostname").write_text("pi\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 pi\n")
    (etc / "machine-id").write_text("uninitialized\n")
    (etc / "fstab").write_text("")
    _link(etc, "default.target", "/lib/systemd/system/multi-user.target")
    _link(etc, "multi-user.target.wants/ssh.service", "/lib/systemd/system/ssh.service")
    for unit in _MASKED:
        _link(etc, unit, "/dev/null")
    # Under qemu's user mode a namespace's descriptor cannot be sent to another process, which is how systemd shares one
    # (without that the check at boot does not start, and nothing goes back after a power cut).
    # And the /proc of a unit's own, which several of its restrictions imply, would show this machine's processor.
    shutil.copy(Path(__file__).with_name("cpuinfo"), root / CPUINFO)
    # A busy machine that emulates a board is slower than any board: nothing is given up for being late.
    patience = "TimeoutStartSec=1800\nWatchdogSec=1800"
    (etc / "systemd/system.conf.d").mkdir(parents=True, exist_ok=True)
    (etc / "systemd/system.conf.d/emulated.conf").write_text("[Manager]\nDefaultTimeoutStartSec=1800\n")
    for unit, lines in {
        "narrowcast-edge": f"PrivateIPC=no\nBindReadOnlyPaths=/{CPUINFO}:/proc/cpuinfo\n{patience}",
        "narrowcast-flash-boot": "PrivateNetwork=no",
    }.items():
        limits = etc / f"systemd/system/{unit}.service.d/emulated.conf"
        limits.parent.mkdir(parents=True)
        limits.write_text(f"[Service]\n{lines}\n")
    for folder in ("opt", "srv", "usr/local"):
        (root / folder).mkdir(exist_ok=True)


def _link(etc: Path, unit: str, to: str) -> None:
    link = etc / "systemd/system" / unit
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(to)


def _append(file: Path, lines: object) -> None:
    with file.open("a") as out:
        out.writelines(f"{line}\n" for line in lines)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, env=_ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout
