"""A machine with a GPU and TensorRT, made of fakes that stand where the real ones would."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from support import fake_tensorrt

BACKEND = "narrowcast.head.backends.tensorrt"
COMPILER = shutil.which("cc") or shutil.which("gcc")


def build_driver(folder: Path) -> Path:
    """The fake CUDA driver as a library."""
    library = folder / "libcuda_fake.so"
    source = Path(__file__).with_name("fake_cuda.c")
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return library


@contextmanager
def machine(driver: Path | str, version: str) -> Iterator[tuple[ModuleType, ModuleType, ctypes.CDLL | None]]:
    """Inside, ``import tensorrt`` finds the fake of a version, and the driver is the one given.

    Gives our backend, the fake TensorRT, and the driver.
    """
    from narrowcast.head.backends import cuda

    real, library = sys.modules.pop("tensorrt", None), cuda.LIBRARY
    fake = fake_tensorrt.module(version)
    sys.modules["tensorrt"] = fake
    sys.modules.pop(BACKEND, None)
    cuda.LIBRARY = str(driver)
    cuda._open.clear()
    try:
        yield importlib.import_module(BACKEND), fake, ctypes.CDLL(str(driver)) if Path(driver).exists() else None
    finally:
        cuda.LIBRARY = library
        cuda._open.clear()
        sys.modules.pop(BACKEND, None)
        sys.modules.pop("tensorrt")
        if real is not None:
            sys.modules["tensorrt"] = real
