"""The release's virtual environment: made of wheels that came along, without any network, and shared by like releases."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import point, remove, write_json
from narrowcast.devices.flash.agent.store import file_of
from narrowcast.devices.flash.agent.work import Work

BUILD_SECONDS = 3600.0
WHOLE = ".complete"
# What a board never imports, half of all: it is not worth its time to compile. Where it is imported, it works all the same.
_SELDOM = r"site-packages/(.*/)?(tests|testing|f2py|lexers|tools|transformers|quantization|narrowcast/(compiler|tail))/"


def build_environment(work: Work) -> str:
    """Makes the environment where it is not there yet, and shows it to the release.

    It is made at its place, since programs in it name that place; ``.complete`` is written when all of it is on disk, and
    what lacks that is made anew.

    Raises:
        AgentError: ``RuntimeSetupError``.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    given = str(work.job.get("environment") or "")
    if given:
        if not Path(given, "bin", "python").exists():
            raise AgentError(
                "RuntimeSetupError", f"there is no environment {given} on the board (no {given}/bin/python)"
            )
        point(work.folder / "venv", given)
        return f"{given}, which was there"
    name = str(work.job["env"])
    place = work.layout.envs / name
    there = (place / WHOLE).exists()
    if not there:
        remove(place)
        _build(work, place)
    point(work.folder / "venv", f"../../envs/{name}")
    return f"{name}, {'which was there' if there else str(len(work.job['wheels'])) + ' wheels'}"


def _build(work: Work, place: Path) -> None:
    wheels = work.layout.flash / "wheels"
    remove(wheels)
    wheels.mkdir(parents=True)
    try:
        for wheel in work.job["wheels"]:
            _link(file_of(work.layout, str(wheel["sha256"])), wheels / Path(str(wheel["name"])).name)
        (pip,) = wheels.glob("pip-*.whl")
        python = str(work.job["python"])
        site = ["--system-site-packages"] if work.job["system_site"] else []
        _call(python, "-m", "venv", "--without-pip", *site, str(place))
        others = [str(path) for path in sorted(wheels.glob("*.whl")) if path != pip]
        _call(
            str(place / "bin" / "python"), f"{pip}/pip", "--disable-pip-version-check", "--no-cache-dir", "install",
            "--quiet", "--no-index", "--no-deps", "--ignore-installed", "--no-compile", *others,
        )  # fmt: skip
        _compile(place)
        os.sync()  # a power cut must not leave empty files behind the mark
        write_json(place / WHOLE, {"wheels": work.job["wheels"], "python": python})
    finally:
        remove(wheels)


def _compile(place: Path) -> None:
    """Bytecode, since the daemon's user may not write any; a file that is not Python of this version is left as it is."""
    sites = map(str, place.glob("lib/python*/site-packages"))
    try:
        _call(str(place / "bin" / "python"), "-m", "compileall", "-q", "-x", _SELDOM, *sites)
    except AgentError as error:
        if error.kind == "DiskSpaceError":
            raise


def _link(file: Path, there: Path) -> None:
    if not file.exists():
        raise AgentError("UploadError", f"{there.name} is not on the board; flash again")
    try:
        os.link(file, there)
    except OSError:  # another file system
        there.symlink_to(file)


def _call(*words: str) -> None:
    environment: dict[str, Any] = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=BUILD_SECONDS, env=environment, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise AgentError("RuntimeSetupError", f"{words[0]} took more than {BUILD_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        if any("No space left" in line for line in said):
            raise AgentError(
                "DiskSpaceError", "the board's disk is full: free some space, then flash again; it goes on"
            )
        raise AgentError("RuntimeSetupError", f"the environment cannot be built: {said[-1]}")
