"""Wheels, as a user makes and fetches them: narrowcast's own, and what they need from the package index."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
_NOT_SOURCES = (".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "demo-output", "tests")


def why_not() -> str:
    """Why no wheel can be built here; empty where they can."""
    if importlib.util.find_spec("ziglang") is None:
        return "ziglang, which cross-compiles the coder, is not installed (pip install 'narrowcast[wheels]')"
    return ""


def build(copy: Path) -> dict[str, Path]:
    """Both wheels, built as ``make wheels`` builds them, from a copy of the sources; by architecture."""
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_SOURCES))
    done = subprocess.run(
        [sys.executable, copy / "scripts" / "build_wheels.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        ("aarch64" if "aarch64" in line else "x86_64"): copy / json.loads(line)["wheel"]
        for line in done.stdout.splitlines()
    }


def fetch(requirement: str, to: Path, *options: str) -> str:
    """Downloads a requirement and all that it needs; returns why that cannot be, empty where it could."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--dest", to,
         "--only-binary=:all:", "--constraint", CONSTRAINTS, *options, requirement],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        return "the package index cannot be reached"
    assert done.returncode == 0, done.stderr
    return ""


def fetch_for_arm64(requirement: str, to: Path, python: str = "3.11") -> str:
    """:func:`fetch` for a board: arm64, glibc up to 2.34."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 34)]
    platforms.append("--platform=manylinux2014_aarch64")
    return fetch(requirement, to, "--python-version", python, "--implementation", "cp", *platforms)
