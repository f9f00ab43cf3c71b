"""The one thing that pyproject.toml cannot say: how the coder's C kernel becomes a plain shared library.

The library has no Python in it (it is loaded with ctypes), so one wheel per architecture serves every Python, and
cross-compiling needs no target headers: ``scripts/build_wheels.py`` sets

    CC                          the compiler, for instance ``python -m ziglang cc -target aarch64-linux-gnu.2.17``
    NARROWCAST_WHEEL_PLATFORM   the wheel's platform tag, for instance ``manylinux_2_17_aarch64``

Without a compiler the install goes on, and the NumPy twin of the kernel serves (slower, same bytes); with
``NARROWCAST_WHEEL_PLATFORM`` set, a missing library is an error.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PLATFORM = os.environ.get("NARROWCAST_WHEEL_PLATFORM")
SOURCES = ["transport/coder/rans.c", "transport/coder/context.c"]
KERNEL = Extension(
    "narrowcast.transport.coder._rans", SOURCES, depends=["transport/coder/rans.h"], optional=PLATFORM is None
)


class BuildKernel(build_ext):
    """Compiles with one call of the C compiler; no Python headers, no ABI tag in the name."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-s"]
        command = [*shlex.split(os.environ.get("CC", "cc")), *flags, "-o", str(target), *ext.sources]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            if not ext.optional:
                raise
            print(f"narrowcast: no C kernel ({error}); the slower NumPy coder will serve", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        if Path(self.build_lib, self.get_ext_filename(KERNEL.name)).exists():
            super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """Tags the wheel for its architecture and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", PLATFORM or super().get_tag()[2]


setup(ext_modules=[KERNEL], cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel})
