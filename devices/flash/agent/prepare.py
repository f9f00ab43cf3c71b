"""Everything before the switch: the new release is verified, measured, tested and laid out beside the running one."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import give, point, read_json, remove, sync_folder, write_atomic, write_json
from narrowcast.devices.flash.agent.layout import by_hand
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.agent.store import file_of
from narrowcast.devices.flash.agent.trust import enrol, identity
from narrowcast.devices.flash.agent.work import Work


def verify(work: Work) -> str:
    """Signature, key and hashes, by the release's own narrowcast, against the keys that this board trusts.

    On a board that trusts nobody yet, the key that came along counts if it was meant to, and is trusted from now on.
    """
    _make_user(work)
    _lay(work)
    if work.job["unsigned"]:
        return _take_unsigned(work)
    line = str(work.job.get("enrol") or "")
    first = not work.layout.trusted.exists()
    if first and not line:
        raise AgentError(
            "BoardVerifyError",
            "the board trusts no key yet, and none was to be enrolled: flash without --no-enrol, or narrowcast keys enrol",
        )
    with tempfile.TemporaryDirectory(prefix="narrowcast-") as folder:
        keys = Path(folder) / "trusted.pub"
        keys.write_bytes(line.encode() + b"\n" if first else work.layout.trusted.read_bytes())
        Path(folder).chmod(0o755)
        found = work.checks("verify", str(work.folder / "model.ncb"), str(keys), kind="BoardVerifyError")
    _check_number(work, found)
    if first:
        enrol(work.layout, line)
    write_json(work.folder / "release.json", {**work.job["release"], "signed_by": found["signed_by"]})
    return f"signed by {found['signed_by']}" + (f"; {identity(line)} is trusted from now on" if first else "")


def _take_unsigned(work: Work) -> str:
    """A bundle without a signature, where whoever flashes said so: hashes and number are checked all the same."""
    found = work.checks("verify", str(work.folder / "model.ncb"), "unsigned", kind="BoardVerifyError")
    _check_number(work, found)
    write_json(work.folder / "release.json", {**work.job["release"], "signed_by": ""})
    return "NOT SIGNED, as was allowed; hashes are right"


def _keys(work: Work) -> str:
    return "unsigned" if work.job["unsigned"] else str(work.layout.trusted)


def _check_number(work: Work, found: dict[str, Any]) -> None:
    """A downgrade is judged by what the signed manifest says, not by what was sent beside it."""
    asked = work.job["release"]
    if (found["name"], found["release"]) != (asked["model"], asked["number"]):
        raise AgentError(
            "BoardVerifyError", f"the bundle is {found['name']} {found['release']}, not what was announced"
        )
    highest = State(work.layout).highest.get(found["name"], 0)
    if found["release"] < highest and not work.job["allow_downgrade"]:
        raise AgentError(
            "DowngradeError",
            f"{found['name']} release {found['release']} is older than {highest}, which this board ran: "
            "--allow-downgrade if that is meant",
        )


def choose(work: Work) -> str:
    """Engine, precision: measured here, and remembered for the daemon."""
    if work.takes_over(work.layout.cache):  # what is measured here is for the new daemon; the old one can do without
        give(Path(work.layout.cache), work.user)
    words = ["choose", str(work.folder / "model.ncb"), _keys(work), json.dumps(work.job["backends"])]
    found = work.checks(*words, str(work.job["precision"]), kind="BoardVerifyError")
    record: Any = read_json(work.folder / "release.json") or {}
    write_json(work.folder / "release.json", {**record, **found})
    return str(found["head"]["words"])


def self_test(work: Work) -> str:
    """Known frames in, symbols within the bound out; golden symbols in, golden bytes out.

    What was loaded to be measured was tested right away; here it counts.
    """
    record: Any = read_json(work.folder / "release.json") or {}
    found = record.get("selftest") or {"passed": False, "words": "the self-test did not run"}
    if not found["passed"]:
        raise AgentError("BoardVerifyError", str(found["words"]))
    return str(found["words"])


def install(work: Work) -> str:
    """Unit, configuration and certificate; the daemon itself says whether its configuration holds, before a link changes."""
    with tempfile.TemporaryDirectory(prefix="narrowcast-") as folder:
        trial = Path(folder) / "edge.toml"
        text = (work.folder / "edge.toml").read_text(encoding="utf-8")
        # What the daemon will read by way of `current` is read from the new release here.
        text = text.replace(f"{work.layout.current}/", f"{work.folder}/")
        text = text.replace(f"{work.layout.config}/tls", f"{work.folder}/tls")
        write_atomic(trial, text.encode(), mode=0o600, owner=work.user)  # it may hold a camera's password
        Path(folder).chmod(0o755)
        state = Path(folder) / "state"
        if work.takes_over(work.layout.state):  # the old daemon wants its own until the switch
            state.mkdir()
            give(state, work.user)
        work.run_in_release(
            "-m", "narrowcast", "stream", "--config", str(trial), "--check", kind="EdgeConfigError",
            state=str(state) if state.exists() else "",
        )  # fmt: skip
    work.services.install({str(name): str(text) for name, text in work.job["units"].items()})
    for link, inside in ((work.layout.edge, "edge.toml"), (Path(work.layout.config) / "tls", "tls")):
        target = f"{work.layout.current}/{inside}"
        if link.exists() and not link.is_symlink():
            _put_away(work, link, inside)
        elif not link.is_symlink() or str(link.readlink()) != target:
            point(link, target)
    return "the daemon's configuration holds"


def _put_away(work: Work, path: Path, inside: str) -> None:
    """What somebody made by hand goes into the release that runs with it, if there is one: a rollback finds it there.

    The copy is whole before the link takes the original's place, so that a power cut leaves one or the other.
    """
    running = work.layout.running()
    home = work.layout.release(running) / inside if running else by_hand(path)
    home = by_hand(path) if home.exists() else home
    partial, old = home.with_name(f".{home.name}.partial"), path.with_name(f".{path.name}.old")
    for one in (partial, old):
        remove(one)
    # As it is, owners included: the daemon that was set up by hand reads it there after a rollback.
    done = subprocess.run(["cp", "-a", "--", str(path), str(partial)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        kind = "DiskSpaceError" if "No space left" in done.stderr else "BoardError"
        raise AgentError(kind, f"{path} cannot be kept: {done.stderr.strip()}")
    os.sync()
    remove(home)
    partial.rename(home)
    sync_folder(home.parent)
    if path.is_dir():  # no link can be renamed over a folder
        path.rename(old)
    point(path, f"{work.layout.current}/{inside}")
    remove(old)


def _lay(work: Work) -> None:
    """The release's files, from what was uploaded."""
    work.folder.chmod(0o755)
    work.layout.releases.chmod(0o755)
    for entry in work.job["files"]:
        source, path = file_of(work.layout, str(entry["sha256"])), work.folder / str(entry["path"])
        if not path.resolve().is_relative_to(work.folder.resolve()):
            raise AgentError("UploadError", f"{entry['path']!r} does not lie in the release")
        secret = bool(entry.get("secret"))
        path.parent.mkdir(exist_ok=True)
        _copy(source, path, 0o600 if secret else 0o644, work.user if secret else "")
    if not any(str(entry["path"]).startswith("tls/") for entry in work.job["files"]):
        keep, there = work.job.get("keep_from"), Path(work.layout.config) / "tls"
        if there.is_symlink():
            there = work.layout.release(str(keep)) / "tls" if keep else by_hand(there)
        _keep(work, there, work.folder / "tls")
    sync_folder(work.layout.releases)
    folders = {work.layout.state: 0o750, work.layout.cache: 0o750, work.layout.run: 0o755}
    for folder, mode in folders.items():
        path = Path(folder)
        if not path.exists() and not folder.startswith("/run/"):  # that is memory, and made when the daemon starts
            path.mkdir(parents=True)
            path.chmod(mode)
            give(path, work.user)


def _keep(work: Work, old: Path, new: Path) -> None:
    """What this flash does not bring is taken over from the release that runs."""
    for source in sorted(old.iterdir()) if old.is_dir() else []:
        _copy(source, new / source.name, 0o600, work.user)


def _copy(source: Path, path: Path, mode: int, owner: str) -> None:
    if not source.exists():
        raise AgentError("UploadError", f"{path.name} is not on the board; flash again")
    write_atomic(path, source.read_bytes(), mode=mode, owner=owner)


def _make_user(work: Work) -> None:
    """The daemon's user, where root can make one; in the groups that cameras, GPUs and sensors want."""
    name = work.user
    if not name or name == "root":
        return
    try:
        pwd.getpwnam(name)
    except KeyError:
        words = [
            "useradd",
            "--system",
            "--home-dir",
            work.layout.state,
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
        ]
        done = subprocess.run([*words, name], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AgentError("BoardError", f"useradd {name}: {done.stderr.strip()}") from None
    groups = [group for group in ("video", "render", "i2c", "gpio") if _has_group(group)]
    if groups and os.geteuid() == 0:
        subprocess.run(["usermod", "-aG", ",".join(groups), name], capture_output=True, check=False)


def _has_group(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
