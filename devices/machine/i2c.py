"""16-bit registers of I2C devices through the kernel's ``/dev/i2c-N``, with no library.

``I2C_RDWR`` writes the register's number and reads its two bytes in one transaction
(``Documentation/i2c/dev-interface.rst``), so that no other process comes in between and moves the register pointer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import unreadable

_I2C_SLAVE = 0x0703
_I2C_RDWR = 0x0707
_READ = 0x0001


class _Message(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("length", ctypes.c_uint16),
        ("buffer", ctypes.POINTER(ctypes.c_uint8)),
    )


class _Transaction(ctypes.Structure):
    _fields_ = (("messages", ctypes.POINTER(_Message)), ("count", ctypes.c_uint32))


def read_word(bus: int, device: int, register: int) -> int:
    """A big-endian register, 0 to 65535.

    Raises:
        FileNotFoundError: there is no such bus.
        SensorError: the bus may not be used, a kernel driver holds the device, or nothing answers.
    """
    path = f"/dev/i2c-{bus}"
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            fix = "sudo usermod -aG i2c $USER, then log in again"
            raise SensorError(f"{path} cannot be opened by this user: {fix}", reason="EACCES") from error
        raise unreadable(path, error.errno) from error
    try:
        fcntl.ioctl(file, _I2C_SLAVE, device)  # refused while a kernel driver holds the device
        return _transact(file, device, register)
    except OSError as error:
        raise _explain(path, device, error) from error
    finally:
        os.close(file)


def _transact(file: int, device: int, register: int) -> int:
    number, value = (ctypes.c_uint8 * 1)(register), (ctypes.c_uint8 * 2)()
    messages = (_Message * 2)(
        _Message(device, 0, 1, ctypes.cast(number, ctypes.POINTER(ctypes.c_uint8))),
        _Message(device, _READ, 2, ctypes.cast(value, ctypes.POINTER(ctypes.c_uint8))),
    )
    fcntl.ioctl(file, _I2C_RDWR, _Transaction(messages, 2))
    return value[0] << 8 | value[1]


def _explain(path: str, device: int, error: OSError) -> SensorError:
    if error.errno == errno.EBUSY:
        return SensorError(
            f"a kernel driver holds {device:#04x} on {path}: read it by hwmon (leave out --meter), or unload it",
            reason="EBUSY",
        )
    if error.errno in {errno.ENXIO, errno.EREMOTEIO, errno.EIO, errno.ETIMEDOUT}:
        bus = path.rpartition("-")[2]
        return SensorError(
            f"nothing answers at {device:#04x} on {path}: check its wires; `i2cdetect -y {bus}` lists what does",
            reason=errno.errorcode[error.errno],
        )
    return unreadable(f"device {device:#04x} on {path}", error.errno)
