"""Builds the x86-64 and the arm64 wheel from this machine (``make wheels``), and checks what they ask of their system.

The C kernel is cross-compiled by zig's clang, which brings the C library's headers and link stubs of every glibc along:
no target headers, no target compiler. One wheel per architecture serves every Python, since the kernel has no Python in it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
GLIBC = "2.17"  # manylinux2014: every Debian, Ubuntu and Raspberry Pi OS of the last ten years
ARCHITECTURES = ("x86_64", "aarch64")
KERNEL = "narrowcast/transport/coder/_rans.so"


def build(architecture: str, out: Path = DIST) -> Path:
    """The wheel for one architecture, in the folder ``out``."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would put what an older build left there in as well
    zig = Path(importlib.util.find_spec("ziglang").origin).with_name("zig")  # type: ignore[union-attr,arg-type]
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{architecture}"
    environment = {
        **os.environ,
        "CC": f"{zig} cc -target {architecture}-linux-gnu.{GLIBC}",
        "NARROWCAST_WHEEL_PLATFORM": platform,
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, env=environment, check=True)
    (wheel,) = out.glob(f"narrowcast-*-py3-none-{platform}.whl")
    return wheel


def check(wheel: Path) -> dict[str, object]:
    """The wheel's size and the newest glibc that it needs.

    Raises:
        SystemExit: there is no kernel in it, or it needs a newer glibc than its tag says.
    """
    with zipfile.ZipFile(wheel) as archive:
        if KERNEL not in archive.namelist():
            sys.exit(f"{wheel.name}: no C kernel in it")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = [tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_(\d+\.\d+)", report)]
    newest = max(needed, default=(0, 0))
    if newest > tuple(map(int, GLIBC.split("."))):
        sys.exit(f"{wheel.name} needs glibc {'.'.join(map(str, newest))}; its tag promises {GLIBC}:\n{report}")
    return {"wheel": os.path.relpath(wheel, ROOT), "bytes": wheel.stat().st_size, "glibc": ".".join(map(str, newest))}


def main() -> None:
    """Builds and checks both, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=DIST, metavar="DIR", help="default: dist/")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("narrowcast-*.whl"):
        old.unlink()
    for architecture in args.architecture or ARCHITECTURES:
        print(json.dumps(check(build(architecture, args.out.resolve()))))


if __name__ == "__main__":
    main()
