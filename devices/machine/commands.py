"""Commands that tell something about a board. ``vcgencmd`` is asked without starting a process."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import unreadable

TIMEOUT_S = 5.0
_ALLOWED = frozenset({"vcgencmd", "nvpmodel"})

# The firmware's property interface: ioctl _IOWR(100, 0, char *) on /dev/vcio, with a buffer of 32-bit words (size,
# code, then
# the tag with its sizes, status and text, then 0). https://github.com/raspberrypi/firmware/wiki/Mailbox-property-interface
_VCIO = "/dev/vcio"
_PROPERTY = 0xC0086400
_GENERAL_COMMAND = 0x00030080
_TEXT_BYTES = 1024


def run(line: str) -> str:
    """What a command prints.

    Raises:
        FileNotFoundError: it is not installed.
        SensorError: it cannot be run, failed, or printed nothing within a few seconds.
    """
    words = line.split()
    if words[0] not in _ALLOWED:
        raise SensorError(f"{words[0]!r} is no command that narrowcast runs")
    if words[0] == "vcgencmd":
        try:
            return _firmware(" ".join(words[1:]))
        except FileNotFoundError:
            pass  # a container or an old kernel may have the command only
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise SensorError(f"`{line}` said nothing in {TIMEOUT_S:.0f} s", reason="ETIMEDOUT") from error
    except PermissionError as error:
        raise unreadable(f"`{line}`", error.errno) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[:200]
        raise SensorError(f"`{line}` failed with exit code {done.returncode}: {said}")
    return done.stdout


def _firmware(command: str) -> str:
    try:
        device = os.open(_VCIO, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            fix = "sudo usermod -aG video $USER, then log in again"
            raise SensorError(f"{_VCIO} cannot be read by this user: {fix}", reason="EACCES") from error
        raise unreadable(_VCIO, error.errno) from error
    try:
        buffer = bytearray(request(command))
        fcntl.ioctl(device, _PROPERTY, buffer, True)
    except OSError as error:
        raise unreadable(_VCIO, error.errno) from error
    finally:
        os.close(device)
    return answer(bytes(buffer), command)


def request(command: str) -> bytes:
    """The buffer that asks the firmware for ``command``."""
    text = command.encode().ljust(_TEXT_BYTES, b"\0")
    head = struct.pack("<6I", 6 * 4 + len(text) + 4, 0, _GENERAL_COMMAND, _TEXT_BYTES, 0, 0)
    return head + text + struct.pack("<I", 0)


def answer(buffer: bytes, command: str) -> str:
    """The text in the firmware's answer.

    Raises:
        SensorError: the firmware refused.
    """
    text = buffer[24 : 24 + _TEXT_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
    (status,) = struct.unpack_from("<I", buffer, 20)
    if status:
        raise SensorError(f"the firmware refused `vcgencmd {command}` with {status}: {text[:100]}")
    return text
