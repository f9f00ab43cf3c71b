"""A few figures of NVIDIA's management library, by ctypes: five functions that every driver since 2017 has.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded, on Volta and later (NVML API
reference).
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

from narrowcast.devices.errors import SensorError

LIBRARY = "NARROWCAST_NVML"  # another library to load, for tests
_OK, _NOT_SUPPORTED, _NO_PERMISSION = 0, 3, 4


def figure(what: str) -> str:
    """``count``, ``INDEX name`` or ``INDEX energy_mj``.

    Raises:
        FileNotFoundError: no NVIDIA driver here.
        SensorError: the library or the GPU refuses.
    """
    library = _library(os.environ.get(LIBRARY, "libnvidia-ml.so.1"))
    if what == "count":
        count = ctypes.c_uint()
        _check(library, library.nvmlDeviceGetCount_v2(ctypes.byref(count)), "counting GPUs")
        return str(count.value)
    index, _, name = what.partition(" ")
    handle = ctypes.c_void_p()
    _check(library, library.nvmlDeviceGetHandleByIndex_v2(int(index), ctypes.byref(handle)), f"GPU {index}")
    if name == "name":
        text = ctypes.create_string_buffer(96)
        _check(library, library.nvmlDeviceGetName(handle, text, 96), f"GPU {index}'s name")
        return text.value.decode("utf-8", "replace")
    energy = ctypes.c_ulonglong()
    status = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
    _check(library, status, f"GPU {index}'s energy counter")
    return str(energy.value)


@lru_cache(maxsize=2)
def _library(name: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise FileNotFoundError(f"no {name}: there is no NVIDIA driver here") from error
    library.nvmlErrorString.restype = ctypes.c_char_p
    _check(library, library.nvmlInit_v2(), "starting NVML")
    return library


def _check(library: ctypes.CDLL, status: int, what: str) -> None:
    if status == _OK:
        return
    said = library.nvmlErrorString(status).decode("utf-8", "replace")
    fix = {_NOT_SUPPORTED: ": GPUs before Volta have no energy counter", _NO_PERMISSION: ": run as root"}.get(
        status, ""
    )
    raise SensorError(f"NVML, {what}: {said}{fix}", reason="EACCES" if status == _NO_PERMISSION else "EIO")
