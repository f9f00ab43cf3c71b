"""Network namespaces and tun devices, by the kernel's own calls: no iproute2 on the board, nothing left behind.

Neither has a name outside of the process: both are gone with it. Sources: the kernel's ``tuntap.rst``, netdevice(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from narrowcast.devices.errors import LinkUnavailableError

DEVICE = Path("/dev/net/tun")
MTU = 1500
CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_UP = 0x0001, 0x1000, 0x0001
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFDSTADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8916, 0x8918, 0x891C, 0x8922


def open_tun(pattern: str) -> tuple[int, str]:
    """A tun device in the namespace of the calling thread; ``%d`` in its name becomes the first free number.

    Returns:
        its file, which does not block, and its name.

    Raises:
        LinkUnavailableError: there can be none.
    """
    try:
        file = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LinkUnavailableError(f"packets want a tun device, and {DEVICE} is missing: modprobe tun") from None
    except OSError as error:
        raise LinkUnavailableError(
            f"packets want a tun device, and {DEVICE} cannot be opened: {error.strerror}"
        ) from None
    try:
        made = fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", pattern.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(file)
        raise LinkUnavailableError(
            f"packets want a tun device, which this user may not make ({error.strerror}): run as root (CAP_NET_ADMIN)"
        ) from None
    return file, made[:16].rstrip(b"\0").decode()


def bring_up(name: str, here: str, there: str) -> None:
    """Gives a tun device of this thread's namespace its address and its peer's, and switches it on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def address(call: int, value: str) -> None:
            sockaddr = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, call, struct.pack("16s16s8x", name.encode(), sockaddr))

        address(_SIOCSIFADDR, here)
        address(_SIOCSIFDSTADDR, there)
        address(_SIOCSIFNETMASK, "255.255.255.255")
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name.encode(), MTU))
        flags = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        is_now = struct.unpack_from("H", flags, 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), is_now | _IFF_UP))


def new_namespace() -> None:
    """Moves the calling thread to a network namespace of its own.

    Raises:
        LinkUnavailableError: it may not.
    """
    _call("unshare", CLONE_NEWNET)


def enter_namespace(file: int) -> None:
    """Moves the calling thread to the network namespace that a file stands for."""
    _call("setns", file, CLONE_NEWNET)


def die_with_parent(number: int) -> None:
    """The kernel sends this signal when the thread that forked this process ends."""
    _call("prctl", _PR_SET_PDEATHSIG, number)


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        why = os.strerror(ctypes.get_errno())
        raise LinkUnavailableError(f"packets want a network namespace of their own ({name}: {why}): run as root")
